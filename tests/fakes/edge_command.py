"""``outpost-edge serve`` and the offline signing of a release, as a person runs them."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def serving(
    *models: str, adapters: Sequence[str] = (), flags: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command with ``--model`` or ``--adapter`` for each ``NAME=PATH``; its base URL, and its process."""
    command = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "0", "--threads", "1", *flags]
    named = [flag for model in models for flag in ("--model", model)]
    named += [flag for adapter in adapters for flag in ("--adapter", adapter)]
    process = subprocess.Popen([*command, *named], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"serving .* at (\S+)/v1", line):
            break
    else:
        pytest.fail(f"outpost-edge ended with {process.wait(10)}: {said}")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == 0


def sign(release: Path, keys: Path) -> None:
    """Make offline keys in ``keys`` and sign ``release`` with two of them."""
    hub = [sys.executable, "-m", "cloud_hub.cli"]
    subprocess.run([*hub, "keys", "init", "--offline", str(keys), "--threshold", "2"], check=True)
    targets = keys / "targets.json"
    signers = [flag for number in (1, 2) for flag in ("--key", str(keys / f"targets-{number}.pem"))]
    signed = [*hub, "release", "sign", str(release), "--targets", str(targets), *signers]
    subprocess.run(signed, check=True)
    assert release.name.rpartition("-")[0] in targets.read_text(encoding="utf-8")
