"""Pictures in prompts: answers are those of libmtmd's own path, whatever else runs and what is reused."""

import ctypes
import io
import itertools
import wave
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import Shape, write_llama
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from seeing_models import MARKS, SOUND, TILE, Kind, picture, sound, write_projector

from models.digest import Digest
from models.engines.base import Finish, GenerateRequest, Media, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings, SavedPrefixes
from models.engines.llama_cpp.library import library
from models.engines.llama_cpp.media import Piece, cut_at_media, is_media, media_ids, place
from models.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidAudio,
    InvalidImage,
    UnsafeFile,
    UnsupportedRequest,
)

WIDTH = 64
SMALL = LlamaSettings(threads=1, context_tokens=256, max_sequences=4, batch_tokens=32, gpu=False)
NOISE = 1e-3
"""Log probabilities that differ by less may be the same number, summed in another order."""
BEFORE, AFTER = "the cat sat on a mat and saw ", " but not why it came"
TILES = 3
"""Of a picture that is twice as wide as high: the whole, and both halves."""


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeing") / "model.gguf"
    return write_llama(path, Shape(width=WIDTH, inner=128), MARKS)


@pytest.fixture(scope="module")
def projectors(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    folder = tmp_path_factory.mktemp("projectors")
    kinds: tuple[Kind, ...] = ("idefics3", "gemma3", "ultravox")
    return {kind: write_projector(folder / f"mmproj-{kind}.gguf", WIDTH, kind) for kind in kinds}


@pytest.fixture(scope="module", params=["idefics3", "gemma3"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def engine(text_model: Path, projectors: dict[Kind, Path], kind: Kind) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(text_model, SMALL, projector=projectors[kind])
    yield engine
    engine.close()


def asked(id: str, *pictures: bytes, after: str = AFTER, **sampling: Any) -> GenerateRequest:
    """A prompt with pictures between two texts."""
    media = tuple(Media("image", data, len(BEFORE)) for data in pictures)
    facts = {"max_tokens": 1, "logprobs": 50, **sampling}
    return GenerateRequest(id, BEFORE + after, Sampling(**facts), media=media)


Likely = dict[bytes, float]


def likely(engine: LlamaEngine, *requests: GenerateRequest) -> list[Likely]:
    """Of each request, the log probabilities of the likeliest first tokens."""
    for request in requests:
        engine.submit(request)
    found: dict[str, Likely] = {}
    while events := engine.step():
        for event in events:
            assert event.error is None
            if event.logprobs and event.id not in found:
                found[event.id] = dict(event.logprobs[0].top)
    return [found[request.id] for request in requests]


def alike(a: Likely, b: Likely) -> bool:
    shared = a.keys() & b.keys()
    return len(shared) > 40 and all(abs(a[token] - b[token]) < NOISE for token in shared)


def bare(text_model: Path, projector: Path, text: bytes, media: Sequence[bytes]) -> "np.ndarray[Any, Any]":
    """Log probabilities after a prompt, by libmtmd's helper alone: no code of ours."""
    from llama_cpp import mtmd_cpp as mtmd

    lib = library()
    model = lib.llama_model_load_from_file(str(text_model).encode(), lib.llama_model_default_params())
    given = mtmd.mtmd_context_params_default()
    given.use_gpu, given.n_threads = False, 1
    sight = mtmd.mtmd_init_from_file(str(projector).encode(), model, given)
    sizes = lib.llama_context_default_params()
    sizes.n_ctx, sizes.n_threads = 256, 1
    context = lib.llama_init_from_model(model, sizes)
    bitmaps = (ctypes.c_void_p * len(media))()
    for index, data in enumerate(media):
        if data.startswith(b"RIFF"):
            with wave.open(io.BytesIO(data)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
            heard = (ctypes.c_float * samples.size).from_buffer_copy(samples.tobytes())
            bitmaps[index] = mtmd.mtmd_bitmap_init_from_audio(samples.size, heard)
            continue
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.uint8)
        height, width, _ = pixels.shape
        seen = (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels.tobytes())
        bitmaps[index] = mtmd.mtmd_bitmap_init(width, height, seen)
    prompt = mtmd.mtmd_input_text(text, len(text), True, True)
    chunks = mtmd.mtmd_input_chunks_init()
    assert mtmd.mtmd_tokenize(sight, chunks, ctypes.byref(prompt), bitmaps, len(media)) == 0
    end = ctypes.c_int32()
    assert mtmd.mtmd_helper_eval_chunks(sight, context, chunks, 0, 0, 64, True, ctypes.byref(end)) == 0
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), shape=(size,)).astype(np.float64)
    mtmd.mtmd_input_chunks_free(chunks)
    for bitmap in bitmaps:
        mtmd.mtmd_bitmap_free(bitmap)
    lib.llama_free(context)
    mtmd.mtmd_free(sight)
    lib.llama_model_free(model)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("pictures", [(), (1,), (1, 2)])
def test_the_answer_is_that_of_libmtmds_own_path(
    engine: LlamaEngine,
    text_model: Path,
    projectors: dict[Kind, Path],
    kind: Kind,
    pictures: tuple[int, ...],
) -> None:
    files = [picture(seed) for seed in pictures]
    text = BEFORE.encode() + b"<__media__>" * len(files) + AFTER.encode()
    expected = np.sort(bare(text_model, projectors[kind], text, files))[::-1]
    (found,) = likely(engine, asked("x", *files))
    assert np.allclose(sorted(found.values(), reverse=True), expected[: len(found)], atol=NOISE)


def test_recordings_are_heard_as_libmtmd_hears_them(text_model: Path, projectors: dict[Kind, Path]) -> None:
    engine = LlamaEngine(text_model, SMALL, projector=projectors["ultravox"])
    high, low = (Media("audio", sound(tone), len(BEFORE)) for tone in (880.0, 220.0))
    text = BEFORE.encode() + b"<__media__>" + AFTER.encode()
    try:
        assert engine.facts.takes == ("audio",)
        for media in (high, low):
            expected = np.sort(bare(text_model, projectors["ultravox"], text, [media.data]))[::-1]
            (found,) = likely(engine, replace(asked("x"), media=(media,)))
            assert np.allclose(sorted(found.values(), reverse=True), expected[: len(found)], atol=NOISE)
        first, other, none = likely(
            engine, *(replace(asked(str(n)), media=media) for n, media in enumerate(((high,), (low,), ())))
        )
        assert not alike(first, other)
        assert not alike(first, none)
        engine.submit(replace(asked("y"), media=(high,)))
        engine.submit(asked("z"))
        usage = {event.id: event.usage.prompt_tokens for event in events_of(engine) if event.done}
        assert usage["y"] == usage["z"] + SOUND
        with pytest.raises(InvalidAudio):
            engine.submit(replace(asked("x"), media=(Media("audio", b"RIFF", 0),)))
        with pytest.raises(UnsupportedRequest, match="image"):
            engine.submit(asked("x", picture(1)))
    finally:
        engine.close()


def test_another_picture_gives_another_answer_and_the_same_one_the_same(engine: LlamaEngine) -> None:
    first, again, other, none = (
        likely(engine, request)[0]
        for request in (asked("a", picture(1)), asked("b", picture(1)), asked("c", picture(2)), asked("d"))
    )
    assert alike(first, again)
    assert not alike(first, other)
    assert not alike(first, none)
    assert not alike(other, none)


def test_what_is_reused_is_counted_and_is_never_another_pictures(
    text_model: Path, projectors: dict[Kind, Path], kind: Kind
) -> None:
    engine = LlamaEngine(text_model, SMALL, projector=projectors[kind])
    fresh = LlamaEngine(text_model, replace(SMALL, max_sequences=1), projector=projectors[kind])
    try:
        requests = [asked(str(number), picture(number % 2)) for number in range(4)]
        together = likely(engine, *requests)
        for request, found in zip(requests[:2], together[:2], strict=True):
            assert alike(likely(fresh, request)[0], found)
        assert alike(together[0], together[2])
        assert alike(together[1], together[3])
        engine.submit(replace(requests[0], id="later"))
        engine.submit(replace(asked("new", picture(7))))
        usage = {event.id: event.usage for event in events_of(engine) if event.done}
        assert usage["later"].cached_tokens == usage["later"].prompt_tokens - 1
        words = len(engine.tokenize(BEFORE, add_special=False, parse_special=False))
        assert words <= usage["new"].cached_tokens < words + 4, "words, and what opens a picture"
    finally:
        engine.close()
        fresh.close()


def events_of(engine: LlamaEngine) -> Iterator[Any]:
    while events := engine.step():
        yield from events


def test_places_are_counted_as_tokens_and_bounded(engine: LlamaEngine, kind: Kind) -> None:
    engine.submit(asked("x", picture(1)))
    engine.submit(asked("y"))
    usage = {event.id: event.usage.prompt_tokens for event in events_of(engine) if event.done}
    tiles = TILES if kind == "idefics3" else 1
    around = usage["x"] - usage["y"] - tiles * TILE
    assert 2 <= around < 12, "marks around tiles"
    with pytest.raises(ContextLengthExceeded, match=r"the context has 256 tokens; the prompt takes \d+"):
        engine.submit(asked("z", *[picture(seed) for seed in range(40)]))
    with pytest.raises(InvalidImage):
        engine.submit(asked("z", b"\x89PNG\r\n"))
    with pytest.raises(InvalidImage, match="too narrow"):
        engine.submit(asked("z", picture(1, 400, 2)))
    with pytest.raises(UnsupportedRequest, match="audio"):
        engine.submit(replace(asked("z"), media=(Media("audio", b"RIFF", 0),)))
    assert engine.step() == []


def test_a_cancelled_look_leaves_the_others_alone(engine: LlamaEngine) -> None:
    engine.submit(asked("kept", picture(11), max_tokens=8))
    engine.submit(asked("dropped", picture(12), picture(13), picture(14), max_tokens=8))
    engine.step()
    engine.cancel("dropped")
    finished = {event.id: event.finish for event in events_of(engine) if event.done}
    assert finished.pop("dropped") is Finish.CANCELLED
    assert finished.pop("kept") in (Finish.STOP, Finish.LENGTH)
    assert engine.load.running == 0


def test_few_cells_make_way_in_the_midst_of_pictures(
    text_model: Path, projectors: dict[Kind, Path], kind: Kind
) -> None:
    sizes = replace(SMALL, context_tokens=96, cache_tokens=112, ahead_tokens=4)
    tight = LlamaEngine(text_model, sizes, projector=projectors[kind])
    roomy = LlamaEngine(text_model, SMALL, projector=projectors[kind])
    try:
        for number in (0, 1, 2, 1, 0, 3, 2, 1):
            request = asked("x", picture(number))
            assert alike(likely(tight, request)[0], likely(roomy, request)[0])
    finally:
        tight.close()
        roomy.close()


def test_the_words_before_a_picture_are_saved_and_the_picture_is_not(
    text_model: Path, projectors: dict[Kind, Path], kind: Kind, tmp_path: Path
) -> None:
    def start() -> LlamaEngine:
        kept = SavedPrefixes(tmp_path, Digest.of(text_model.read_bytes()))
        return LlamaEngine(text_model, SMALL, saved=kept, projector=projectors[kind])

    engine = start()
    expected = [likely(engine, asked(str(n), picture(1), after=f" {n} {AFTER}"))[0] for n in range(3)]
    words = len(engine.tokenize(BEFORE, add_special=False, parse_special=False))
    engine.close()
    engine = start()
    try:
        engine.submit(asked("x", picture(1), after=f" 0 {AFTER}"))
        events = list(events_of(engine))
        assert words <= events[-1].usage.cached_tokens < words + 4
        (found,) = (dict(event.logprobs[0].top) for event in events if event.logprobs)
        assert alike(found, expected[0])
    finally:
        engine.close()


def test_a_file_that_is_no_projector_or_does_not_fit_is_refused(
    text_model: Path, projectors: dict[Kind, Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsafeFile, match="no projector"):
        LlamaEngine(text_model, SMALL, projector=text_model)
    with pytest.raises(UnsafeFile, match="a base model is needed"):
        LlamaEngine(projectors["gemma3"], SMALL)
    wide = write_projector(tmp_path / "mmproj-wide.gguf", 2 * WIDTH)
    with pytest.raises(EngineError, match="does not fit"):
        LlamaEngine(text_model, SMALL, projector=wide)
    turning = write_llama(tmp_path / "turning.gguf", Shape(width=WIDTH, inner=128), MARKS, "qwen2vl")
    with pytest.raises(EngineError, match="M-RoPE"):
        LlamaEngine(turning, SMALL, projector=projectors["idefics3"])
    blind = LlamaEngine(text_model, SMALL)
    try:
        with pytest.raises(UnsupportedRequest, match="text alone"):
            blind.submit(asked("x", picture(1)))
    finally:
        blind.close()


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.integers(0, 3)), unique=True, max_size=6),
    st.integers(1, 40),
)
def test_ids_of_places_are_no_tokens_and_never_meet(pieces: list[tuple[bytes, int]], size: int) -> None:
    ids = [id for digest, index in pieces for id in media_ids(digest, index, size)]
    assert len(set(ids)) == len(ids)
    assert all(is_media(id) for id in ids)
    assert not any(is_media(token) for token in (-1, 0, 1))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=4),
    st.lists(st.integers(1, 12), min_size=1),
)
def test_a_prompt_is_computed_in_runs_of_words_or_of_one_piece(
    drawn: list[tuple[int, int, bool]], sizes: list[int]
) -> None:
    pieces, tokens = [], list[int]()
    for number, (words, places, whole) in enumerate(drawn):
        ids = media_ids(bytes([number]), 0, places)
        tokens += [*[1] * words, *ids]
        pieces.append(Piece(ids, whole, None, None))
    tokens.append(1)
    place(pieces, tokens)
    done, turn = 0, itertools.cycle(sizes)
    while done < len(tokens):
        size, piece = cut_at_media(pieces, done, min(next(turn), len(tokens) - done))
        run = tokens[done : done + size]
        assert run
        if piece is None:
            assert not any(is_media(id) for id in run)
        else:
            assert run == piece.ids[done - piece.start :][:size]
            assert not piece.whole or run == piece.ids
        done += size
    assert done == len(tokens)
