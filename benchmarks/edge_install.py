"""What a device has to install: size of an ``[edge]``-only environment and the agent's import time.

Run: ``.venv/bin/python benchmarks/edge_install.py``. It builds a throw-away environment, pinned.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORT = (
    "import time, sys; t = time.perf_counter(); import edge_agent.rest.api, edge_agent.agent; "
    "print(time.perf_counter() - t); assert 'torch' not in sys.modules"
)


def size_of(folder: Path) -> int:
    """Bytes of the regular files below ``folder``."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def output(*argv: object) -> str:
    """Run a command and return its stdout; pip's remarks about unused indexes are dropped."""
    return subprocess.run([str(part) for part in argv], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print one JSON object with sizes in MB and import times in seconds (median of five)."""
    with tempfile.TemporaryDirectory() as scratch:
        env = Path(scratch) / "env"
        python = env / "bin/python"
        output(sys.executable, "-m", "venv", env)
        bare = size_of(env)
        output(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[edge]")
        site = env / "lib/python3.11/site-packages"
        largest = sorted(((size_of(p), p.name) for p in site.iterdir() if p.is_dir()), reverse=True)[:6]
        times = [float(output(python, "-c", IMPORT)) for _ in range(6)][1:]  # the first writes byte code
        names = {item["name"] for item in json.loads(output(python, "-m", "pip", "list", "--format=json"))}
        report = {
            "installed_mb": round((size_of(env) - bare) / 1e6, 1),
            "packages": len(names),
            "torch": "torch" in names,
            "import_seconds": round(statistics.median(times), 2),
            "largest_mb": {name: round(size / 1e6, 1) for size, name in largest},
        }
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
