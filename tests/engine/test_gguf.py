"""The GGUF parser: what it reads, and that hostile bytes end in a named refusal."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_bytes import build
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import EngineError, UnsafeFile
from models.gguf import GgufHeader, TensorType, check_adapter, check_model, parse_header, read_header

F32 = int(TensorType.F32)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
scalars = st.one_of(
    st.booleans(), st.integers(0, 2**32 - 1), st.floats(allow_nan=False), st.text(max_size=20)
)
arrays = st.one_of(
    st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple), st.lists(st.text(max_size=5)).map(tuple)
)
metadata = st.dictionaries(
    names.filter(lambda key: key not in ("general.alignment", "split.count")), scalars | arrays, max_size=6
)


@given(metadata, st.lists(st.tuples(names, st.integers(1, 40)), unique_by=lambda item: item[0], max_size=5))
def test_what_was_written_is_read(pairs: dict, sizes: list[tuple[str, int]]) -> None:
    tensors, at = [], 0
    for name, size in sizes:
        tensors.append((name, (size,), F32, at))
        at += -(-size * 4 // 32) * 32
    raw = build(pairs, tensors, at)
    header = parse_header(raw)
    assert dict(header.metadata) == pairs
    assert [(tensor.name, tensor.shape) for tensor in header.tensors] == [(n, (s,)) for n, s in sizes]
    assert all(tensor.offset + tensor.size <= len(raw) for tensor in header.tensors)


SOUND = build(
    {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"], "flag": True},
    [("one", (32,), F32, 0), ("two", (64, 2), int(TensorType.Q8_0), 128)],
    128 + 136,
)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4), st.data())
def test_damaged_bytes_are_read_or_refused_and_nothing_else(
    damage: list[tuple[int, int]], data: st.DataObject
) -> None:
    raw = bytearray(SOUND)
    for at, value in damage:
        raw[at] = value
    cut = data.draw(st.integers(0, len(raw)))
    for candidate in (bytes(raw), bytes(raw[:cut])):
        try:
            header = parse_header(candidate)
        except UnsafeFile:
            continue
        assert all(0 <= tensor.offset <= len(candidate) - tensor.size for tensor in header.tensors)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(UnsafeFile):
        parse_header(noise)
    with pytest.raises(UnsafeFile):
        parse_header(b"GGUF" + struct.pack("<I", 3) + b"\xff" * 8 + noise)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (build({}, version=1), "version 1"),
        (build({}, version=0x03000000), "version"),
        (build({"general.alignment": 3}), "power of two"),
        (build({"split.count": 2}), "split"),
        (build({"k": [[1]]}), "nested"),
        (build({}, [("t", (8,), F32, 0), ("t", (8,), F32, 32)], 64), "twice"),
        (build({}, [("t", (8,), F32, 1)], 64), "aligned"),
        (build({}, [("t", (8,), F32, 0), ("u", (16,), F32, 0)], 64), "overlap"),
        (build({}, [("t", (64,), F32, 0)], 64), "past the end"),
        (build({}, [("t", (8,), F32, 2**63)], 64), "past the end"),
        (build({}, [("t", (2**40, 2**40), F32, 0)], 64), "impossible shape"),
        (build({}, [("t", (0,), F32, 0)], 64), "impossible shape"),
        (build({}, [("t", (33,), int(TensorType.Q8_0), 0)], 64), "do not divide"),
        (build({}, [("t", (8,), 4, 0)], 64), "unknown type 4"),
        (build({}, [("t", (1,) * 5, F32, 0)], 64), "5 dimensions"),
        (build({}, [("t" * 64, (8,), F32, 0)], 64), "64 bytes"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0), "cannot fit"),
    ],
)
def test_hostile_headers_are_refused_by_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(UnsafeFile, match=reason):
        parse_header(raw)


def test_files_that_are_no_model_are_refused_by_name(tmp_path: Path, make_adapter: Callable) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()
    pickled = tmp_path / "weights.gguf"
    pickled.write_bytes(b"\x80\x04\x95pickle")
    for path in (empty, pickled, tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(UnsafeFile, match=path.name):
            read_header(path)
    with pytest.raises(UnsafeFile, match="is an adapter"):
        check_model(make_adapter(1))


@pytest.mark.model
def test_the_header_of_a_real_model(model_path: Path) -> None:
    header = read_header(model_path)
    assert (header.architecture, len(header.tensors)) == ("llama", 272)
    assert header.integer("llama.context_length") == 8192
    assert {tensor.type for tensor in header.tensors} <= {TensorType.F32, TensorType.Q4_1, TensorType.Q8_0}
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    assert last.offset + last.size <= model_path.stat().st_size


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "qwen2"}, "is for 'qwen2'"),
        ({"target": "attn_x"}, "no tensor 'blk.0.attn_x.weight'|no tensor"),
        ({"stray": True}, "would be ignored"),
    ],
)
def test_adapters_that_would_not_do_what_they_promise(
    model_path: Path, make_adapter: Callable[..., Path], options: dict, reason: str
) -> None:
    base: GgufHeader = read_header(model_path)
    with pytest.raises(EngineError, match=reason):
        check_adapter(make_adapter(1, **options), base)
