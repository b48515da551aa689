"""Run llama.cpp's server tests, and write what came of them into docs/conformance.md.

    python tests/conformance/llama_server_report.py [--check] [PYTEST ARGUMENT ...]

With ``--check``, or when only some tests are asked for, the page is left as it is. Exits with 1 when a test
failed, or when of all tests none is meant by a reason for skipping.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_server_cases import SKIPPED

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- llama-server: written by scripts/conformance -->", "<!-- end -->"

Results = Mapping[str, Sequence[str]]


def tests() -> Path:
    """Where the archive's tests are. Raises ``SystemExit`` before set-up."""
    [*found] = (ROOT / ".cache").glob("llama.cpp-*/tools/server/tests")
    if not found:
        raise SystemExit("llama.cpp's server tests are not there: run scripts/setup")
    return found[0]


def run(arguments: Sequence[str]) -> Results:
    """What became of each test: outcome and reason."""
    folder = tests()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        places = (ROOT, HERE, ROOT / "tests" / "fakes")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "LLAMA_SERVER_REPORT": str(report),
        }
        command = [sys.executable, "-m", "pytest", "-p", "llama_server_shim", "--tb=short", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:asyncio"]
        subprocess.run([*command, *(arguments or ["unit"])], cwd=folder, env=environment, stdout=sys.stderr)
        if not report.is_file():
            raise SystemExit("the tests could not be collected")
        results: Results = json.loads(report.read_text())
    return results


def stale(results: Results) -> list[str]:
    """Keys of the list of skipped tests that no test begins with."""
    return [key for key in SKIPPED if not any(name.startswith(key) for name in results)]


def page_part(results: Results) -> str:
    """Two tables: outcomes by file, and skips by reason."""
    files: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for name, (outcome, reason) in results.items():
        file, _, test = name.partition("::")
        files[file][outcome] += 1
        if outcome == "skipped":
            whole = "" if files[file]["passed"] else file
            reasons[reason][whole or f"{file}::{test.partition('[')[0]}"] += 1
    total = Counter(outcome for outcome, _ in results.values())
    lines = [
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped.",
        "",
        "| file | passed | failed | skipped |",
        "|---|---|---|---|",
    ]
    for file, counts in sorted(files.items()):
        if counts["passed"] or counts["failed"]:
            lines.append(f"| {file} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |")
    lines += ["", "| skipped because | how many | which |", "|---|---|---|"]
    for reason, counted in sorted(reasons.items(), key=lambda item: -item[1].total()):
        by_file: dict[str, list[str]] = defaultdict(list)
        for name in sorted(counted):
            file, _, test = name.partition("::")
            by_file[file] += [test] if test and files[file]["passed"] else []
        which = "; ".join(
            f"{file} ({', '.join(found)})" if found else f"{file}" for file, found in sorted(by_file.items())
        )
        lines.append(f"| {reason} | {counted.total()} | {which} |")
    return "\n".join(lines)


def write(part: str) -> None:
    """Put ``part`` between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{part}\n\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run, write, judge."""
    some = [argument for argument in arguments if argument != "--check"]
    results = run(some)
    wrong = [name for name, (outcome, _) in results.items() if outcome == "failed"]
    if not some:
        wrong += [f"in the list of skipped tests, but no test: {key}" for key in stale(results)]
        if "--check" not in arguments:
            write(page_part(results))
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
