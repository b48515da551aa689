"""What a device has to install: size of an ``[edge]``-only environment and the agent's import time.

Run: ``.venv/bin/python benchmarks/edge_install.py``. Builds a throw-away environment with the pinned versions.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORT = (
    "import time, sys; t = time.perf_counter(); import edge_agent.api, edge_agent.agent; "
    "print(time.perf_counter() - t); assert 'torch' not in sys.modules"
)


def size_of(folder: Path) -> int:
    """Bytes of the regular files below ``folder``."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def main() -> None:
    """Print one JSON object with sizes in MB and import times in seconds (median of five)."""
    with tempfile.TemporaryDirectory() as scratch:
        env = Path(scratch) / "env"
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
        bare = size_of(env)
        subprocess.run(
            [env / "bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[edge]"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        site = env / "lib/python3.11/site-packages"
        largest = sorted(((size_of(p), p.name) for p in site.iterdir() if p.is_dir()), reverse=True)[:6]
        times = [
            float(subprocess.run([env / "bin/python", "-c", IMPORT], check=True, capture_output=True, text=True).stdout)
            for _ in range(6)
        ][1:]  # the first run writes the byte code
        packages = subprocess.run(
            [env / "bin/python", "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
        )
        names = {item["name"] for item in json.loads(packages.stdout)}
        print(
            json.dumps(
                {
                    "installed_mb": round((size_of(env) - bare) / 1e6, 1),
                    "packages": len(names),
                    "torch": "torch" in names,
                    "import_seconds": round(statistics.median(times), 2),
                    "largest_mb": {name: round(size / 1e6, 1) for size, name in largest},
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
