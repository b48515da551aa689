"""llama.cpp's source, out of llama-cpp-python's source archive: fetched by pip, checked, unpacked in part.

The version is the one that ``constraints.txt`` pins, so that what is built or run from here is the same
llama.cpp that the engine links.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


def unpack(kept: tuple[str, ...], target: Path, what: str) -> None:
    """What of llama.cpp's tree begins with one of ``kept``, at ``target``; nothing if it is there already.

    Raises ``SystemExit`` for an archive that is not the pinned one.
    """
    done, mark = target / ".complete", "\n".join((SHA256, *kept))
    if done.is_file() and done.read_text() == mark:
        return
    print(f"Fetching {what} (source archive of llama-cpp-python {VERSION}, 77 MB).", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        archive = _download(Path(folder))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{archive.name}: not the archive that was pinned")
        unpacked = Path(folder, "unpacked")
        prefix = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix(prefix)
                if member.name != name and name.startswith(kept):
                    member.name = name
                    tar.extract(member, unpacked, filter="data")
        (unpacked / ".complete").write_text(mark)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _download(folder: Path) -> Path:
    # Preparing metadata would need the build tools; pip does it even for a download, so a plain
    # environment with network is enough.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--disable-pip-version-check", f"llama-cpp-python=={VERSION}", "--dest", str(folder)]
    subprocess.run(command, check=True, timeout=900, stdout=sys.stderr)
    return next(folder.glob("*.tar.gz"))
