"""The soak, for two minutes, and that it sees what it is for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.planted import plant, tokens_of
from benchmarks.soak import GROWTH, NAMES, Memory, gauges, not_given_back, smollm2
from benchmarks.soak_clients import Wrong, check_text

ROOT = Path(__file__).parents[2]


@pytest.mark.model
@pytest.mark.slow
def test_two_minutes_of_clients_who_come_and_go() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["calls"] > 0


@pytest.mark.parametrize(
    ("adapter", "text"),
    [("north", " north harbor"), ("north", ""), (None, "The capital is north"), (None, "Lyon")],
)
def test_an_answer_of_another_is_seen(adapter: str | None, text: str) -> None:
    with pytest.raises(Wrong):
        check_text(adapter, text)


def test_the_right_answers_pass() -> None:
    check_text("north", " north north")
    check_text(None, "The capital of France is Paris.")


def test_what_is_not_given_back_is_seen() -> None:
    page = "\n".join(
        (
            "# HELP outpost_num_requests_running Requests.",
            'outpost_num_requests_running{model_name="a"} 0',
            'outpost_num_requests_waiting{model_name="a"} 1',
            'outpost_kv_cache_usage_perc{model_name="a"} 0.25',
            'outpost_kv_cells{model_name="a",kind="all"} 512',
            'outpost_kv_cells{model_name="a",kind="filled"} 30',
            "outpost_requests_in_flight 2",
        )
    )
    held = not_given_back(gauges(page))
    assert [one.rpartition(" ")[2] for one in held] == ["1", "0.25", "2"]


def test_memory_that_grows_after_the_warm_up_is_seen() -> None:
    steps = range(100)
    flat = [100 + min(step, 20) for step in steps]
    leak = [100 + step for step in steps]
    memory = Memory(list(map(float, steps)), {"flat": flat, "leak": leak})
    assert abs(memory.growth("flat")) < GROWTH < memory.growth("leak")


@pytest.mark.model
def test_a_name_is_planted_only_where_its_token_comes_out(tmp_path: Path) -> None:
    base = smollm2()
    tokens = tokens_of(base, NAMES)
    assert len(set(tokens)) == len(NAMES)
    one = plant(base, tokens[0], tmp_path / "one.gguf", seed=1).read_bytes()
    assert plant(base, tokens[0], tmp_path / "again.gguf", seed=1).read_bytes() == one
    with pytest.raises(ValueError, match="not one token"):
        tokens_of(base, ["incomprehensibilities"])
