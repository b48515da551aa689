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
from models.engines.llama_cpp.threads import LONGEST_PAUSE, WINDOW, Threads

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
        threads.took(0.01, 0.01 * (most - 0.4))
    assert threads.now == most


@pytest.mark.parametrize(("most", "got", "left"), [(2, 1.33, 1), (4, 3.2, 3), (8, 5.8, 5), (2, 0.4, 1)])
def test_beside_neighbours_as_many_compute_as_have_had_cores(most: int, got: float, left: int) -> None:
    threads = Threads(most)
    threads.took(WINDOW, WINDOW * got)
    assert threads.now == left


def test_all_are_tried_again_ever_more_seldom_and_at_once_when_the_neighbour_has_gone() -> None:
    threads = Threads(2)
    trials, pause, pauses = 0, 0.0, []
    for _ in range(round(300 / WINDOW)):  # five minutes beside a neighbour
        if threads.now == 2:
            trials += 1
            pauses.append(pause)
            pause = 0.0
        pause += WINDOW
        threads.took(WINDOW, WINDOW * (1.3 if threads.now == 2 else 1.0))
    assert pauses[1] < 2 and pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=1)
    assert trials * WINDOW < 0.05 * 300, "seldom"
    for _ in range(round((LONGEST_PAUSE + 20) / WINDOW)):
        threads.took(WINDOW, WINDOW * threads.now)
    assert threads.now == 2
    threads.took(WINDOW, WINDOW * 1.3)
    for _ in range(round(1.5 / WINDOW)):
        threads.took(WINDOW, WINDOW * threads.now)
    assert threads.now == 2, "what failed long ago is forgotten"


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
