"""A training process that is killed (SIGKILL, wherever it happens to be) and started again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_training_kill import train

def report(done, note):
    print(f"{done:.4f}", flush=True)
    time.sleep(float(sys.argv[2]))

train(Path(sys.argv[1]), Path(sys.argv[3]), report)
"""


def train(folder: Path, base: Path, report) -> None:
    from compile.recipe.training import FineTune
    from compile.training.causal import train_causal
    from compile.training.examples import Example
    from compile.training.run import TrainingRun

    examples = [Example((8 + i % 5, 9 + i % 7, 8 + i % 5, 1), 2, (1.0, 0.2)) for i in range(32)]
    settings = FineTune(rank=4, epochs=6, batch=4, learning_rate=0.01, dropout=0.1, deterministic=True)
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    lists = examples[:24], examples[24:]
    train_causal(base, *lists, settings, TrainingRun(out, folder / "scratch", 1, lambda: 0.0, report))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from small_models import bare_llama

    return bare_llama(tmp_path_factory.mktemp("tiny"))


def start(folder: Path, pause: float, tiny: Path) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(pause), str(tiny), str(here)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=here.parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_curve_and_the_weights_of_a_quiet_run(tiny, tmp_path):
    child = start(tmp_path / "cut", 0.02, tiny)
    assert child.stdout
    for line in child.stdout:
        if float(line) > 0.6:
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    second = start(tmp_path / "cut", 0, tiny)
    told = second.communicate()[0].splitlines()
    assert second.returncode == 0
    assert float(told[0]) > 0.4 and float(told[-1]) == 1  # it went on; it did not begin again
    train(tmp_path / "whole", tiny, lambda done, note: None)
    curves = [json.loads((tmp_path / name / "out" / "curve.json").read_text()) for name in ("whole", "cut")]
    assert curves[0] == curves[1] and len(curves[0]) == 6
    adapters = [
        (tmp_path / name / "out" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")
    ]
    assert adapters[0] == adapters[1]
