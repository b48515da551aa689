"""``outpost-edge``: the command line. Owns flags and exit codes; what a verb does lives in its module.

Exit codes: 0 done, 1 failed, 2 wrong use (the message names the flag), 3 refused by a policy or a
verification. A verb's module is imported when the verb runs, so ``--help`` loads none of them.
"""

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from edge_agent.errors import EdgeError, PolicyViolation, ReleaseRefused, WrongUse
from models.errors import DigestMismatch, InvalidManifest, InvalidTemplate, ModelsError, UnsafeFile
from sync.errors import SyncError, VerificationFailed

FAILED, WRONG_USE, REFUSED = 1, 2, 3

_REFUSALS = (
    PolicyViolation,
    ReleaseRefused,
    DigestMismatch,
    InvalidManifest,
    InvalidTemplate,
    UnsafeFile,
    VerificationFailed,
)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Say an error that was raised on purpose in one line, and leave with its exit code."""
    try:
        yield
    except (EdgeError, ModelsError, SyncError) as error:
        click.echo(f"outpost-edge: {error}", err=True)
        code = WRONG_USE if isinstance(error, WrongUse) else FAILED
        sys.exit(REFUSED if isinstance(error, _REFUSALS) else code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="outpost", prog_name="outpost-edge")
def main() -> None:
    """Serve models on this device, with or without a hub."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # These say at INFO what the metrics count.
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


@main.command()
@click.option(
    "--model", "models", multiple=True, metavar="NAME=PATH", help="A GGUF file or a release folder."
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[BASE:]NAME=PATH",
    help="A LoRA for a model, asked for as BASE:NAME.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="An address of the loopback.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--threads", default=0, type=click.IntRange(0, 512), help="Threads of each engine; 0: all cores but one."
)
def serve(models: tuple[str, ...], adapters: tuple[str, ...], host: str, port: int, threads: int) -> None:
    """Serve models over OpenAI's API, at once and with no hub."""
    with exit_codes():
        from edge_agent.engine_process import EngineSettings
        from edge_agent.serve import read_plan
        from edge_agent.serve import serve as run

        plan = read_plan(models, adapters)
        settings = EngineSettings(threads=threads)
        asyncio.run(run(plan, host, port, settings, lambda text: click.echo(text, err=True)))


if __name__ == "__main__":
    main()
