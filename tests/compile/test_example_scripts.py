"""The scripts that make what example recipes read: asked for help, they write nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("script", ["vision/digits.py", "search/pairs.py"])
def test_help_is_no_folder_and_no_place_is_no_start(tmp_path: Path, script: str) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / script), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert call("--help").returncode == 0 and call().returncode == 2
    assert list(tmp_path.iterdir()) == []
