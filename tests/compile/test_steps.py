import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.errors import CompileError
from compile.steps import Cache, Step, in_order


def step(name="a", parameters=None, after=None, tools=None, work=None) -> Step:
    def write(inputs, folder, scratch, report):
        (folder / "out").write_text(name)

    return Step(name, parameters or {}, after or {}, tools or {}, work or write, seconds=1)


@given(
    st.dictionaries(st.text(max_size=5), st.integers(-9, 9)),
    st.dictionaries(st.text(max_size=5), st.integers(-9, 9)),
)
def test_two_steps_share_a_key_only_when_all_that_decides_is_equal(one, other):
    assert (step(parameters=one).key == step(parameters=other).key) == (one == other)


def test_a_key_changes_with_what_it_builds_on_and_with_its_tools():
    first = step(after={"x": step("b", {"v": 1})})
    assert first.key != step(after={"x": step("b", {"v": 2})}).key
    assert first.key != step(after={"y": step("b", {"v": 1})}).key
    assert step(tools={"t": "1"}).key != step(tools={"t": "2"}).key


def test_order_puts_what_is_needed_first_and_each_once():
    root = step("root")
    left, right = step("left", after={"r": root}), step("right", after={"r": root})
    top = step("top", after={"l": left, "r": right})
    assert [one.name for one in in_order([top, left])] == ["root", "left", "right", "top"]


def test_a_result_is_kept_and_a_failure_leaves_nothing(tmp_path):
    calls = []

    def work(inputs, folder, scratch, report):
        calls.append(1)
        (folder / "half").write_text("x")
        if len(calls) == 1:
            raise OSError("disk full")

    (tmp_path / "cache").mkdir()
    cache, one = Cache(tmp_path / "cache"), step(work=work)
    with pytest.raises(CompileError, match="disk full"):
        cache.run(one, lambda done, note: None)
    assert not cache.has(one)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["scratch"]
    folder = cache.run(one, lambda done, note: None)
    assert cache.run(one, lambda done, note: None) == folder and len(calls) == 2


def test_a_killed_step_is_run_again_and_finds_its_scratch(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from compile.steps import Cache, Step
        def work(inputs, folder, scratch, report):
            seen = (scratch / "epoch").exists()
            (folder / "out").write_text("resumed" if seen else "fresh")
            (scratch / "epoch").write_text("1")
            if not seen:
                print("ready", flush=True)
                time.sleep(60)
        root = Path(sys.argv[1])
        step = Step("long", {}, {}, {}, work, seconds=1)
        print((Cache(root).run(step, lambda done, note: None) / "out").read_text())
        """
    )
    root = tmp_path / "cache"
    root.mkdir()
    command = [sys.executable, "-c", script, str(root)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "ready\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert not list(root.glob("long-*"))
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert second.stdout == "resumed\n"
    (done,) = root.glob("long-*/step.json")
    assert json.loads(done.read_text())["step"] == "long"
