"""What is read of a safetensors file, and what is refused; pickles in whatever dress."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from models.errors import UnsafeFile
from models.pickles import refuse_pickle
from models.safetensors import parse_header, read_header

SOUND = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def written(path: Path, header: Any, body: int = 24) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(body))
    return path


def test_a_file_of_the_library_is_read(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((3, 5), np.float16), "b": np.ones(7, np.int64)}, path, {"format": "np"})
    header = read_header(path)
    assert header.metadata == {"format": "np"} and header.parameters == 22
    assert {t.name: (t.type, t.shape, t.size) for t in header.tensors} == {
        "a": ("F16", (3, 5), 30),
        "b": ("I64", (7,), 56),
    }


def test_a_header_of_two_gigabytes_is_refused_by_its_length(tmp_path: Path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as stream:  # a sparse file that is as long as it claims
        stream.write((2 << 30).to_bytes(8, "little"))
        stream.truncate(3 << 30)
    with pytest.raises(UnsafeFile, match="a header of 2147483648 bytes in a file of 3221225472"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (SOUND, 23),
        (SOUND, 25),
        (b'{"w": 1, "w": 2}', 0),
        (b"[]", 0),
        (b"{", 0),
        (b'{"w": ' + b"[" * 100_000, 0),
        ({"w": {**SOUND["w"], "extra": 1}}, 24),
        ({"w": {**SOUND["w"], "dtype": "F99"}}, 24),
        ({"w": {**SOUND["w"], "dtype": "F64"}}, 24),
        ({"w": {**SOUND["w"], "shape": [2, -3]}}, 24),
        ({"w": {**SOUND["w"], "shape": [True, 6]}}, 24),
        ({"w": {**SOUND["w"], "shape": [1 << 61, 1 << 61]}}, 24),
        ({"w": {**SOUND["w"], "data_offsets": [24, 0]}}, 24),
        ({"w": {**SOUND["w"], "data_offsets": [0, 24.0]}}, 24),
        ({"w": SOUND["w"], "v": SOUND["w"]}, 24),  # overlap
        ({"w": {**SOUND["w"], "data_offsets": [8, 32]}}, 32),  # a gap that could hold anything
        ({**SOUND, "__metadata__": {"a": 1}}, 24),
    ],
)
def test_what_is_not_sound_is_refused(tmp_path: Path, header: Any, body: int):
    with pytest.raises(UnsafeFile, match=r"bad\.safetensors"):
        read_header(written(tmp_path / "bad.safetensors", header, body))


def test_an_empty_or_missing_file_is_refused(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(UnsafeFile):
            read_header(tmp_path / name)


@given(st.binary(max_size=300), st.integers(0, 1000))
@settings(max_examples=200)
def test_any_header_is_read_or_refused(data: bytes, size: int):
    try:
        parse_header(data, size)
    except UnsafeFile:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON | st.fixed_dictionaries(dict.fromkeys(SOUND["w"], JSON))))
@settings(max_examples=200)
def test_any_json_is_read_or_refused(header: dict[str, Any]):
    try:
        parse_header(json.dumps(header).encode(), 100)
    except UnsafeFile:
        pass


class Trap:
    """Would leave a file behind if anyone unpickled it."""

    def __reduce__(self):
        return (Path.touch, (Path("/tmp/outpost-was-here"),))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_whatever_it_is_called(tmp_path: Path, protocol: int):
    for name in ("model.onnx", "model.safetensors", "model.gguf", "model"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Trap(), protocol))
        with pytest.raises(UnsafeFile, match="pickle"):
            refuse_pickle(path)
    assert not Path("/tmp/outpost-was-here").exists()


def test_a_zip_with_a_pickle_in_it_is_one(tmp_path: Path):
    path = tmp_path / "model.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(UnsafeFile, match="pickle"):
        refuse_pickle(path)


@pytest.mark.parametrize("name", ["w.pt", "w.PTH", "pytorch_model.bin", "w.ckpt", "w.pkl", "w.joblib"])
def test_a_name_that_means_a_pickle_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UnsafeFile, match=name):
        refuse_pickle(tmp_path / name)


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_none(tmp_path: Path):
    header = json.dumps(SOUND).encode().ljust(0x280)
    path = written(tmp_path / "model.safetensors", header)
    assert path.read_bytes()[:2] == b"\x80\x02"
    refuse_pickle(path)
    assert read_header(path).parameters == 6
