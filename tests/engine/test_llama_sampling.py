"""What a request may ask of sampling, over a real model."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from models.engines.base import Finish, GenerateRequest
from models.engines.llama_cpp import LlamaEngine
from models.errors import UnsupportedRequest

pytestmark = pytest.mark.model

QUESTION = "What is the capital of France?"


def ask(engine: LlamaEngine, run: Callable, request: GenerateRequest) -> tuple[str, list[int]]:
    """The answer and its token ids."""
    engine.submit(request)
    text = run(engine).text[request.id]
    return text, engine.tokenize(text, False, False)


def test_a_bias_forbids_a_token_or_makes_it_the_only_one(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    _, plain = ask(engine, run, chat("x", QUESTION))
    _, without = ask(engine, run, chat("x", QUESTION, logit_bias=((plain[0], -100.0),)))
    assert without[0] != plain[0]
    (word,) = engine.tokenize(" the", False, False)
    only, _ = ask(engine, run, chat("x", QUESTION, logit_bias=((word, 100.0),), max_tokens=4))
    assert only == " the" * 4


def test_penalties_count_the_tokens_of_the_answer_as_openai_defines_them(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    """With one token at a bias of 60, a penalty takes over at the count which the definition says."""
    (word,) = engine.tokenize(" the", False, False)
    base = chat("x", QUESTION, logit_bias=((word, 60.0),), max_tokens=12, ignore_eos=True)
    always, _ = ask(engine, run, base)
    assert always == " the" * 12

    def run_length(**penalty: float) -> int:
        options = {"logit_bias": ((word, 60.0),), "max_tokens": 12, "ignore_eos": True, **penalty}
        _, tokens = ask(engine, run, chat("x", QUESTION, **options))
        return next((place for place, token in enumerate(tokens) if token != word), len(tokens))

    assert run_length(presence_penalty=100.0) == 1
    assert run_length(presence_penalty=5.0) == 12, "it is subtracted once, however often the token was used"
    by_fifteen, by_thirty = run_length(frequency_penalty=15.0), run_length(frequency_penalty=30.0)
    assert 12 > by_fifteen > by_thirty >= 1, "it is subtracted for each use"


def test_repetition_is_divided_away_in_the_prompt_too(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    request = "Repeat exactly: the spindle is hot."
    assert "spindle is hot" in ask(engine, run, chat("x", request))[0]
    assert "spindle is hot" not in ask(engine, run, chat("x", request, repeat_penalty=2.0))[0]


def test_filters_leave_the_likeliest_token(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    greedy, _ = ask(engine, run, chat("x", QUESTION))
    for filter in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        filtered, _ = ask(engine, run, chat("x", QUESTION, temperature=5.0, seed=1, **filter))
        assert filtered == greedy, filter


def test_an_answer_goes_on_past_its_end_when_told_to(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    engine.submit(chat("x", QUESTION, ignore_eos=True, max_tokens=40))
    last = run(engine).last["x"]
    assert (last.finish, last.usage.completion_tokens) == (Finish.LENGTH, 40)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7, "top_k": 3, "seed": 2}, {"grammar": "root ::= [A-Z]+"}]
)
def test_log_probabilities_are_the_models_own(
    options: dict, engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    request = chat("x", QUESTION, logprobs=3, max_tokens=5, **options)
    engine.submit(request)
    told, text = [], ""
    while events := engine.step():
        told += [one for event in events for one in event.logprobs]
        text += "".join(event.text for event in events)
    assert b"".join(one.token for one in told).decode() == text
    prompt = engine.prompt_tokens(request.prompt)
    answer = [next(iter(engine.tokenize(one.token.decode(), False, False))) for one in told]
    logits = engine.score([*prompt, *answer], len(prompt) - 1)[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, one in enumerate(told):
        assert one.logprob == pytest.approx(expected[place, answer[place]], abs=0.2)
        values = [value for _, value in one.top]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert values[0] == pytest.approx(expected[place].max(), abs=0.2)
        assert sum(map(math.exp, values)) <= 1


def test_a_grammar_holds_from_its_trigger_on(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    """The model writes the trigger anyway, and goes on in a way that breaks the grammar."""
    grammar = 'root ::= "Paris" (" is big!" | " is small!")'
    free, _ = ask(engine, run, chat("x", QUESTION))
    assert free.startswith("The capital of France is Paris.")
    held, _ = ask(engine, run, chat("x", QUESTION, grammar=grammar, trigger="Paris"))
    assert held in ("The capital of France is Paris is big!", "The capital of France is Paris is small!")
    untouched, _ = ask(engine, run, chat("x", QUESTION, grammar=grammar, trigger="Berlin"))
    assert untouched == free


@pytest.mark.parametrize("seed", range(6))
def test_no_draw_can_break_a_triggered_grammar(
    seed: int, engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    """One letter triggers: at temperature 100 tokens with it inside, and anything behind it, come at once."""
    wild = {"temperature": 100.0, "seed": seed, "max_tokens": 30}
    text, _ = ask(engine, run, chat("x", "Go.", grammar='root ::= "e" [0-9]{3}', trigger="e", **wild))
    assert "e" in text
    head, _, rest = text.partition("e")
    assert rest[:3].isdigit() or len(rest) < 3
    assert len(rest) <= 3 and (not rest or rest.isdigit()) and "e" not in head


def test_a_grammar_that_ends_nowhere_is_its_callers_doing(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    engine.submit(chat("x", QUESTION, grammar=r'root ::= "ab" [^\x00-\U0010FFFF]'))
    engine.submit(chat("y", QUESTION))
    last = run(engine).last
    assert isinstance(last["x"].error, UnsupportedRequest)
    assert last["x"].error.option == "grammar"
    assert last["y"].error is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"repeat_penalty": 2.1}, "repeat_penalty"),
        ({"logit_bias": ((49152, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias"),
        ({"logprobs": -1}, "logprobs"),
        ({"trigger": "x"}, "trigger"),
        ({"ignore_eos": True, "grammar": 'root ::= "a"'}, "ignore_eos"),
    ],
)
def test_options_out_of_range_are_refused_by_name(
    options: dict, named: str, engine: LlamaEngine, chat: Callable[..., GenerateRequest]
) -> None:
    with pytest.raises(UnsupportedRequest) as refused:
        engine.submit(chat("x", "Hi", **options))
    assert refused.value.option == named
    assert engine.step() == []


def test_a_prompt_of_token_ids_is_the_same_prompt(
    engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    text = chat("x", QUESTION)
    ids = GenerateRequest("x", tuple(engine.prompt_tokens(text.prompt)), text.sampling)
    assert ask(engine, run, text)[0] == ask(engine, run, ids)[0]
    with pytest.raises(UnsupportedRequest, match="token ids"):
        engine.submit(GenerateRequest("x", (1, 49152), text.sampling))
