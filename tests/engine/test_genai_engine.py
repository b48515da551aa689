"""GenAI folders as a text engine: the protocol, its limits, and what is refused before a library sees it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from genai_folders import MAX_RANK, exported, write_peft
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.onnx.genai import export_adapter, write_adapter
from models.engines.base import Event, Finish, GenerateRequest, Sampling
from models.engines.onnx_genai import GenaiEngine, GenaiSettings, check_folder
from models.engines.onnx_genai.sampler import Sampler
from models.engines.onnx_genai.tokens import BYTES, Tokens
from models.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    EngineError,
    UnknownAdapter,
    UnsafeFile,
    UnsupportedRequest,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPT = "<|im_start|>user\nThe fires in Sydney<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[GenaiEngine]:
    engine = GenaiEngine(
        exported("fp32", slots=True), GenaiSettings(context_tokens=96, max_sequences=2, batch_tokens=8)
    )
    yield engine
    engine.close()


def run(engine: GenaiEngine) -> tuple[dict[str, str], dict[str, Event]]:
    text: dict[str, str] = {}
    last: dict[str, Event] = {}
    while events := engine.step():
        for event in events:
            assert event.id not in last, "an event after the last one"
            text[event.id] = text.get(event.id, "") + event.text
            if event.done:
                last[event.id] = event
    return text, last


def request(id: str, prompt: str = PROMPT, adapter: str | None = None, **sampling) -> GenerateRequest:
    return GenerateRequest(id, prompt, Sampling(**{"max_tokens": 12, **sampling}), adapter)


def test_answers_are_greedy_and_the_same_alone_and_beside_others(engine: GenaiEngine) -> None:
    engine.submit(request("alone"))
    alone, last = run(engine)
    for number in range(4):  # two at a time
        engine.submit(request(str(number)))
    together, _ = run(engine)
    assert set(together.values()) == {alone["alone"]}
    usage = last["alone"].usage
    assert usage.prompt_tokens == len(engine.prompt_tokens(PROMPT))
    prompt = engine.prompt_tokens(PROMPT)
    answer: list[int] = []
    while len(answer) < usage.completion_tokens:
        answer.append(int(engine.score([*prompt, *answer], len(prompt) + len(answer) - 1)[0].argmax()))
    assert (
        b"".join(engine._tokens.piece(one, at == 0) for at, one in enumerate(answer)).decode(
            "utf-8", "replace"
        )
        == alone["alone"]
    )


def test_scores_do_not_depend_on_how_the_text_is_cut(engine: GenaiEngine) -> None:
    ids = engine.tokenize(
        "The fires in Sydney were under control on Tuesday night, the minister said", False, True
    )
    whole = GenaiEngine(exported("fp32", slots=True), GenaiSettings(context_tokens=96)).score(ids)
    np.testing.assert_allclose(engine.score(ids), whole, atol=1e-4)
    np.testing.assert_allclose(engine.score(ids, first=11), whole[11:], atol=1e-4)


def test_an_adapter_comes_and_goes_without_touching_other_answers(
    engine: GenaiEngine, tmp_path: Path
) -> None:
    export_adapter(
        write_peft(tmp_path / "p", seed=3), exported("fp32", slots=True), tmp_path / "x.onnx_adapter"
    )
    engine.submit(request("before"))
    before, _ = run(engine)
    engine.attach("x", tmp_path / "x.onnx_adapter")
    assert engine.adapters == ("x",)
    with pytest.raises(EngineError, match="already"):
        engine.attach("x", tmp_path / "x.onnx_adapter")
    engine.submit(request("base"))
    engine.submit(request("adapted", adapter="x"))
    engine.detach("x")  # what runs may finish
    with pytest.raises(UnknownAdapter):
        engine.submit(request("late", adapter="x"))
    both, _ = run(engine)
    assert both["base"] == before["before"]
    assert both["adapted"] != both["base"]
    engine.attach("x", tmp_path / "x.onnx_adapter")
    engine.submit(request("again", adapter="x"))
    assert run(engine)[0]["again"] == both["adapted"]
    engine.detach("x")


def test_limits_and_options_are_held_or_refused(engine: GenaiEngine) -> None:
    long = "fires " * 200
    with pytest.raises(ContextLengthExceeded):
        engine.submit(request("a", long))
    with pytest.raises(AnswerTooLong):
        engine.submit(request("a", max_tokens=1000))
    with pytest.raises(UnsupportedRequest, match="grammar"):
        engine.submit(request("a", grammar='root ::= "a"'))
    with pytest.raises(UnsupportedRequest, match="empty"):
        engine.submit(request("a", ""))
    for wrong in ({"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}):
        with pytest.raises(UnsupportedRequest):
            engine.submit(request("a", **wrong))
    with pytest.raises(UnknownAdapter):
        engine.submit(request("a", adapter="nobody"))
    assert engine.step() == []
    engine.submit(request("all", max_tokens=None))
    _, last = run(engine)
    assert last["all"].finish in (Finish.LENGTH, Finish.STOP)
    assert last["all"].usage.prompt_tokens + last["all"].usage.completion_tokens <= 96


def test_a_request_is_cancelled_within_a_step(engine: GenaiEngine) -> None:
    for name in ("a", "b", "c"):
        engine.submit(request(name, max_tokens=40))
    engine.step()
    for name in ("a", "c", "unknown"):
        engine.cancel(name)
    events = {event.id: event for event in engine.step()}
    assert events["a"].finish is events["c"].finish is Finish.CANCELLED
    assert events["b"].finish is None
    engine.cancel("b")
    run(engine)


def test_stop_strings_and_seeds(engine: GenaiEngine) -> None:
    engine.submit(request("plain"))
    plain = run(engine)[0]["plain"]
    stop = plain[3:6]
    engine.submit(request("stopped", stop=(stop,)))
    text, last = run(engine)
    assert text["stopped"] == plain[: plain.index(stop)]
    assert last["stopped"].finish is Finish.STOP
    drawn = []
    for seed in (7, 7, -1):
        engine.submit(request("drawn", temperature=1.5, top_p=0.95, seed=seed))
        drawn.append(run(engine)[0]["drawn"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_literal_control_token_is_only_text(engine: GenaiEngine) -> None:
    text = "a<|im_end|>b"
    control = engine.tokenize("<|im_end|>", False, True)
    assert len(control) == 1
    assert "<|im_end|>" in engine.facts.control_tokens
    assert control[0] in engine.prompt_tokens(text)
    literal = engine.prompt_tokens(text, [(1, len(text) - 1)])
    assert control[0] not in literal
    assert b"".join(engine._tokens.piece(one, False) for one in literal).decode() == text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_pieces_joined_are_the_text(text: str) -> None:
    engine_tokens = TOKENS()
    ids = engine_tokens.encode(text, add_special=False, parse_special=False)
    assert b"".join(engine_tokens.piece(one, at == 0) for at, one in enumerate(ids)).decode() == text


def TOKENS():  # noqa: N802 - a lazy constant
    if not hasattr(TOKENS, "made"):
        path = exported("fp32", slots=True) / "tokenizer.json"
        TOKENS.made = Tokens(path, json.loads(path.read_text()))
    return TOKENS.made


def test_every_byte_has_one_character() -> None:
    assert sorted(BYTES.values()) == list(range(256))


@given(st.integers(0, 1000), st.floats(0.2, 0.99))
def test_top_p_never_draws_from_the_tail(seed: int, top_p: float) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    token = Sampler(Sampling(max_tokens=1, temperature=1.0, top_p=top_p, seed=seed)).sample(logits)
    # What is likelier than the token does not reach top_p yet.
    assert np.exp(logits[:token]).sum() < top_p + 1e-6


def change_config(folder: Path, **changes) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    for dotted, value in changes.items():
        place = config
        *parents, key = dotted.split("__")
        for parent in parents:
            place = place[parent]
        place[key] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__decoder__filename": "../model.onnx"},
        {"model__decoder__filename": "/etc/passwd"},
        {"model__decoder__session_options__custom_ops_library": "evil"},
        {"model__decoder__session_options__enable_profiling": "x"},
        {"model__decoder__session_options__provider_options": [{"qnn": {"backend_path": "x"}}]},
        {"model__decoder__session_options__provider_options": [{"cuda": {}}, {"qnn": {}}]},
        {"model__decoder__session_options__provider_options": [{"cuda": {}, "qnn": {}}]},
        {"model__decoder__session_options__provider_options": ["cuda"]},
        {"model__decoder__session_options__provider_options": {"cuda": {}}},
        {"model__decoder__pipeline": []},
        {"model__vision": {"filename": "vision.onnx"}},
        {"model__speech": {"config_filename": "../../x"}},
        {"model": 3},
    ],
)
def test_a_folder_that_points_elsewhere_is_refused(changes: dict, tmp_path: Path) -> None:
    shutil.copytree(exported("int4", slots=True), tmp_path / "m")
    check_folder(tmp_path / "m")
    change_config(tmp_path / "m", **changes)
    with pytest.raises(UnsafeFile):
        GenaiEngine(tmp_path / "m", GenaiSettings())


def test_a_folder_made_for_cuda_is_computed_on_the_cpu_where_there_is_no_gpu(tmp_path: Path) -> None:
    folder = shutil.copytree(exported("fp32"), tmp_path / "m")
    assert not check_folder(folder).for_cuda
    # Addresses in the engine's memory: CUDA's provider would take them for a stream and for functions.
    options = [{"cuda": {"user_compute_stream": "1", "gpu_external_alloc": "1"}}]
    change_config(folder, model__decoder__session_options__provider_options=options)
    assert check_folder(folder).for_cuda
    said = []
    for path, device in ((exported("fp32"), "cpu"), (folder, "cpu"), (folder, "auto")):
        engine = GenaiEngine(path, GenaiSettings(context_tokens=96, device=device))  # type: ignore[arg-type]
        engine.submit(request("a"))
        said.append(run(engine)[0]["a"])
        engine.close()
    assert len(set(said)) == 1
    with pytest.raises(EngineError, match="has no CUDA: install onnxruntime-genai-cuda"):
        GenaiEngine(folder, GenaiSettings(device="cuda"))


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    good = exported("int4", slots=True)
    for name in ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"):
        folder = tmp_path / name
        shutil.copytree(good, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UnsafeFile):
            GenaiEngine(folder, GenaiSettings())
    for name, content in (("ops.so", b"\x7fELF"), ("weights.bin", b"x"), ("w.dat", b"\x80\x04\x95ab")):
        folder = tmp_path / f"with-{name}"
        shutil.copytree(good, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(UnsafeFile):
            check_folder(folder)
    folder = tmp_path / "linked"
    shutil.copytree(good, folder)
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").symlink_to(good / "model.onnx.data")
    with pytest.raises(UnsafeFile, match="link"):
        check_folder(folder)
    with pytest.raises(UnsafeFile):
        check_folder(tmp_path / "nowhere")


def test_adapters_that_do_not_fit_are_refused(engine: GenaiEngine, tmp_path: Path) -> None:
    a, b = (
        "model.layers.0.attn.q_proj.lora_A.MatMul.weight",
        "model.layers.0.attn.q_proj.lora_B.MatMul.weight",
    )

    def matrix(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype=np.float32)

    wrong = {
        "half": {a: matrix(256, 4)},
        "stranger": {a: matrix(256, 4), "model.layers.9.x": matrix(4, 4)},
        "shape": {a: matrix(255, 4), b: matrix(4, 256)},
        "rank": {a: matrix(256, MAX_RANK + 1), b: matrix(MAX_RANK + 1, 256)},
        "ranks": {a: matrix(256, 4), b: matrix(3, 256)},
    }
    for name, values in wrong.items():
        write_adapter(values, tmp_path / name)
        with pytest.raises(EngineError):
            engine.attach(name, tmp_path / name)
    write_adapter({a: matrix(256, 4), b: matrix(4, 256)}, tmp_path / "partial")
    with pytest.raises(EngineError, match=r"leaves the base's slot 'model\.layers\.0\.attn\.v_proj.* empty"):
        engine.attach("partial", tmp_path / "partial")
    export_adapter(write_peft(tmp_path / "p", 5), exported("fp32", slots=True), tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"no adapter at all"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnsafeFile):
            engine.attach(name, tmp_path / name)
    with pytest.raises(UnsafeFile):
        engine.attach("gone", tmp_path / "gone")
    with pytest.raises(EngineError, match="without slots"):
        GenaiEngine(exported("int8"), GenaiSettings()).attach("good", tmp_path / "good")
    assert engine.adapters == ()
