"""How many threads compute, beside neighbours that want the cores and beside none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engines.base import GenerateRequest
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.engines.llama_cpp.threads import ALONE, FIRST_PAUSE, LONGEST_PAUSE, WINDOW, Threads

shares = st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0.0, 1.0)), max_size=60)
"""Of each computation: how long it took, and how much of its threads' time they had a core."""


@given(st.integers(1, 64), shares)
def test_there_is_always_one_and_never_more_than_were_asked_for(most: int, computed: list) -> None:
    threads = Threads(most)
    for wall, share in computed:
        threads.took(wall, wall * share * threads.now)
        assert 1 <= threads.now <= most


@given(st.integers(2, 64), st.integers(1, 200))
def test_alone_all_of_them_compute(most: int, steps: int) -> None:
    threads = Threads(most)
    for _ in range(steps):
        threads.took(0.01, 0.01 * (most - 0.4 - ALONE * (most - 1)))
    assert threads.now == most


@pytest.mark.parametrize(("most", "got", "left"), [(2, 1.33, 1), (4, 3.2, 3), (8, 5.8, 5), (2, 0.4, 1)])
def test_beside_neighbours_as_many_compute_as_have_had_cores(most: int, got: float, left: int) -> None:
    threads = Threads(most)
    threads.took(WINDOW, WINDOW * got)
    assert threads.now == left


def beside_a_neighbour(threads: Threads, step: float) -> bool:
    """Compute a step, on two cores of which a neighbour wants one; whether it was tried with both."""
    tried = threads.now == 2
    threads.took(step, step * (1.3 if tried else 1.0))
    return tried


@pytest.mark.parametrize("step", [WINDOW, 5.0])
def test_all_are_tried_again_ever_more_seldom_and_at_once_when_the_neighbour_has_gone(step: float) -> None:
    threads = Threads(2)
    steps = [step] * round(300 / step)  # five minutes beside a neighbour
    tried = [number for number, step in enumerate(steps) if beside_a_neighbour(threads, step)]
    assert tried[0] == 0 and tried[1] <= FIRST_PAUSE + 1, "the neighbour may have gone soon"
    assert tried[-1] - tried[-2] <= LONGEST_PAUSE + 1
    assert len(tried) < 5 + len(steps) / LONGEST_PAUSE
    for _ in range(LONGEST_PAUSE + round(20 / step)):
        threads.took(step, step * threads.now)
    assert threads.now == 2
    beside_a_neighbour(threads, step)
    for _ in range(FIRST_PAUSE + 1):
        threads.took(step, step * threads.now)
    assert threads.now == 2, "what failed long ago is forgotten"


def test_who_gave_up_some_gives_up_more_when_more_neighbours_come() -> None:
    threads = Threads(8)
    threads.took(WINDOW, WINDOW * 7.2)
    threads.took(WINDOW, WINDOW * 4.0)
    assert threads.now == 4


@given(st.lists(st.floats(-0.08, 0.08), min_size=1, max_size=100))
def test_beside_a_quota_of_cores_as_many_compute(noise: list[float]) -> None:
    threads = Threads(8)
    for one in noise:
        cores = min(2.0, threads.now)
        threads.took(WINDOW, WINDOW * min(threads.now, cores + one))
        assert threads.now in (2, 8)


@pytest.mark.model
def test_an_engine_gives_up_cores_that_others_want(
    model_path: Path, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    cores = len(os.sched_getaffinity(0))
    engine = LlamaEngine(model_path, LlamaSettings(threads=max(2, cores), context_tokens=256, gpu=False))
    busy = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(busy) for _ in range(2 * cores)]
    try:
        engine.submit(chat("x", "Count.", max_tokens=64, ignore_eos=True))
        fewest = engine.threads.now
        while engine.step():
            fewest = min(fewest, engine.threads.now)
        assert fewest < engine.threads.most
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
        engine.close()
