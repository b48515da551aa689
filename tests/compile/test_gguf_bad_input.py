"""Files that lie, and disks that fill up: a clear error, nothing half-written."""

import subprocess
import sys

import pytest
from gguf_models import Shape, calibration_text, write_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.gguf.importance import importance
from compile.gguf.quantize import quantize
from models.errors import UnsafeFile


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_llama(
        tmp_path_factory.mktemp("sound") / "f32.gguf", Shape(layers=1, width=64, inner=64)
    ).read_bytes()


def refused(folder, content):
    source = folder / "bad.gguf"
    source.write_bytes(content)
    with pytest.raises(UnsafeFile, match=r"bad\.gguf") as said:
        quantize(source, folder / "q.gguf", "Q8_0", 1)
    with pytest.raises(UnsafeFile):
        importance(source, source, folder / "i.safetensors", 1, 64)
    assert [path.name for path in folder.iterdir()] == ["bad.gguf"]
    return str(said.value)


def test_a_file_that_is_cut_short_is_refused_before_a_native_library_sees_it(sound, tmp_path):
    assert "past the end" in refused(tmp_path, sound[:-1])
    assert "cannot fit the file" in refused(tmp_path, sound[:1000])
    assert "cannot be read" in refused(tmp_path, b"")


def test_a_wrong_magic_and_sizes_beyond_the_file_are_refused(sound, tmp_path):
    assert "wrong magic" in refused(tmp_path, b"GGML" + sound[4:])
    assert "cannot fit" in refused(tmp_path, sound[:8] + (1 << 60).to_bytes(8, "little") + sound[16:])
    name = b"blk.0.attn_q.weight"
    at = sound.index(name) + len(name) + 4
    assert "impossible shape" in refused(
        tmp_path, sound[:at] + (1 << 62).to_bytes(8, "little") + sound[at + 8 :]
    )
    assert "past the end" in refused(tmp_path, sound[:at] + (1 << 30).to_bytes(8, "little") + sound[at + 8 :])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_cut_is_ever_taken_for_a_model(sound, tmp_path_factory, data):
    length = data.draw(st.integers(0, len(sound) - 1))
    refused(tmp_path_factory.mktemp("cut"), sound[:length])


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path):
    source = write_llama(tmp_path / "f32.gguf", Shape(layers=2))
    target = tmp_path / "q.gguf"
    quantize(source, target, "Q4_0", 1)
    before = target.read_bytes()
    for room in (100_000, 500_000, 1_000_000):  # in the header, in a matrix, in a later one
        code = (
            "import resource, sys; from pathlib import Path; from compile.gguf.quantize import quantize\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
            "quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', 1)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, source, target], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and "ToolFailed: quantizing to Q8_0 failed" in done.stderr, done.stderr
        assert target.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f32.gguf", "q.gguf"]
    quantize(source, target, "Q8_0", 1)
    assert target.stat().st_size > 1_000_000


def test_a_disk_that_fills_up_under_an_importance_matrix_leaves_nothing(tmp_path):
    source = write_llama(tmp_path / "f32.gguf", Shape(layers=1, inner=256))
    text = calibration_text(tmp_path / "text.txt", 60)
    code = (
        "import resource, sys; from pathlib import Path; from compile.gguf.importance import importance\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "source, text, target = map(Path, sys.argv[1:])\n"
        "importance(source, text, target, 1, 48, 48)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, text, tmp_path / "importance.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "ToolFailed: measuring the importance" in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f32.gguf", "text.txt"]
