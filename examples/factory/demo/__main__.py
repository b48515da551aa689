"""The whole product on a real model, in separate processes: ``scripts/demo``.

Exit 0 only when every check of all eight steps held.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import report
from fleet import Fleet
from processes import StepFailed, processes
from steps import WALK, Compiled, compile_releases
from story import Story, say

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


def main() -> int:
    """Walk through the eight steps; print the table; write ``demo-report.html``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recipe", type=Path, default=HERE.parent / "tickets-v1.yaml")
    options.add_argument("--next-recipe", type=Path, default=HERE.parent / "tickets-v2.yaml")
    options.add_argument("--work", type=Path, default=ROOT / ".cache" / "demo")
    options.add_argument("--cache", type=Path, default=ROOT / ".cache" / "outpost")
    options.add_argument("--report", type=Path, default=ROOT / "demo-report.html")
    chosen = options.parse_args()

    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    story = Story()
    compiled: Compiled | None = None
    fleet: Fleet | None = None
    with processes(chosen.work / "logs") as running:
        try:
            compiled = compile_releases(story, chosen.recipe, chosen.next_recipe, chosen.work, chosen.cache)
            system = compiled.adapter.engine.system_prompt or ""
            fleet = Fleet(chosen.work, running, compiled.base.name, compiled.adapter.name, system)
            for step in WALK:
                step(story, fleet, compiled)
        except StepFailed as failure:
            say(f"\n{failure}\n\nLogs of every process: {chosen.work / 'logs'}")
    figures = {**(compiled.figures if compiled else {}), **(fleet.figures if fleet else {})}
    if compiled:
        report.write(chosen.report, story, compiled.report, figures)
    print(story.table())
    for name, value in figures.items():
        print(f"{name:<44} {value}")
    print(f"\nReport: {chosen.report}   Compile report: {chosen.work / 'v1' / 'report.html'}")
    print("Every check held." if story.held else "NOT every check held.")
    return 0 if story.held else 1


if __name__ == "__main__":
    sys.exit(main())
