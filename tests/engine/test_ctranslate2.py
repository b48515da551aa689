"""CTranslate2 headers: what is read of a sound file, and that no damage passes or crashes."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ctranslate2 import read_header
from models.errors import UnsafeFile


def text(value: str) -> bytes:
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def variable(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    head = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + head + struct.pack("<BI", kind, len(data)) + data


def model(*variables: bytes, aliases: tuple[tuple[str, str], ...] = (), version: int = 6) -> bytes:
    body = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    named = b"".join(text(alias) + text(target) for alias, target in aliases)
    return body + b"".join(variables) + struct.pack("<I", len(aliases)) + named


SCALE = variable("scale", (), 0, bytes(4))
WEIGHT = variable("weight", (2, 3), 4, bytes(12))
SOUND = model(SCALE, WEIGHT, aliases=(("tied", "weight"),))


def test_what_a_sound_file_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(SOUND)
    header = read_header(path)
    assert (header.specification, header.revision, header.parameters) == ("WhisperSpec", 3, 6)
    assert [(one.name, one.type, one.shape) for one in header.variables] == [
        ("scale", "float32", ()),
        ("weight", "float16", (2, 3)),
    ]
    assert header.aliases == {"tied": "weight"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut off"),
        (model(version=5), "version 5"),
        (SOUND[:-1], "cut off"),
        (SOUND + b"\0", "nothing names"),
        (model(SCALE, SCALE), "twice"),
        (model(WEIGHT, aliases=(("tied", "other"),)), "cannot be"),
        (model(WEIGHT, aliases=(("weight", "weight"),)), "cannot be"),
        (model(variable("w", (2, 3), 4, bytes(10))), "not 10 bytes"),
        (model(variable("w", (2,), 9, bytes(2))), "unknown type"),
        (model(variable("w", (1,) * 9, 1, bytes(1))), "9 dimensions"),
        (model(variable("w", (1 << 31, 1 << 31), 1, b"")), "not 0 bytes"),
        (model(variable("a\0b", (), 1, bytes(1))), "name that is none"),
        (struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1 << 31), "claims"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match=why):
        read_header(path)


@settings(deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_leaves_a_sound_file(tmp_path_factory, data: st.DataObject) -> None:
    damaged = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        header = read_header(path)
    except UnsafeFile:
        return
    assert sum(one.size for one in header.variables) <= len(damaged)
