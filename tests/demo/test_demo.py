"""The whole line, as ``scripts/demo`` walks it, with the reduced recipe: separate processes, a real model."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FACTORY = ROOT / "examples" / "factory"


@pytest.mark.model
@pytest.mark.slow
def test_every_check_of_the_demo_holds(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = subprocess.run(
        [
            *(sys.executable, FACTORY / "demo"),
            *("--recipe", FACTORY / "tickets-ci.yaml", "--next-recipe", FACTORY / "tickets-ci-v2.yaml"),
            *("--work", tmp_path / "work", "--report", report),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout
    assert "Every check held." in done.stdout
    page = report.read_text(encoding="utf-8")
    assert page.count("<svg") == 3  # two plots of the variants and the time line
