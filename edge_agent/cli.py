"""``outpost-edge``: the command line. Owns flags and exit codes; what a verb does lives in its module.

Exit codes: 0 done, 1 failed, 2 wrong use (the message names the flag), 3 refused by a policy or a
verification. A verb's module is imported when the verb runs, so ``--help`` loads none of them.
"""

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_agent.errors import EdgeError, NoRoom, PolicyViolation, ReleaseRefused, WrongUse
from models.errors import DigestMismatch, InvalidManifest, InvalidTemplate, ModelsError, UnsafeFile
from sync.errors import EnrolmentRefused, SyncError, VerificationFailed

if TYPE_CHECKING:
    from edge_agent.engines.settings import Kv
    from models.engines.onnx_session import Device

FAILED, WRONG_USE, REFUSED = 1, 2, 3

_HOME = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

_REFUSALS = (
    PolicyViolation,
    ReleaseRefused,
    DigestMismatch,
    EnrolmentRefused,
    InvalidManifest,
    InvalidTemplate,
    NoRoom,
    UnsafeFile,
    VerificationFailed,
)


class _Verbs(click.Group):
    """Says an error that was raised on purpose in one line, and leaves with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (EdgeError, ModelsError, SyncError) as error:
            click.echo(f"outpost-edge: {error}", err=True)
            code = WRONG_USE if isinstance(error, WrongUse) else FAILED
            sys.exit(REFUSED if isinstance(error, _REFUSALS) else code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="outpost", prog_name="outpost-edge")
def main() -> None:
    """Serve models on this device, with or without a hub."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # These say at INFO what the metrics count, and of a threshold each key that did not sign.
    for name in ("httpx", "uvicorn", "tuf.api._payload"):
        logging.getLogger(name).setLevel(logging.WARNING)


@main.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=PATH",
    help="A GGUF file, an ONNX folder or a release folder.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[BASE:]NAME=PATH",
    help="A LoRA for a model, asked for as BASE:NAME.",
)
@click.option(
    "--projector",
    "projectors",
    multiple=True,
    metavar="NAME=PATH",
    help="The mmproj file with which the GGUF model of that name sees or hears.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="An address of this machine; other than the loopback needs the next three.",
)
@click.option("--tls-cert", type=_FILE, help="PEM; its names are those that callers may use.")
@click.option("--tls-key", type=_FILE, help="PEM, of the certificate.")
@click.option(
    "--keys",
    type=_FILE,
    help="Let in only who has a key of this file (outpost-edge key create).  [default: HOME/keys.json]",
)
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--threads",
    default=0,
    type=click.IntRange(0, 512),
    help="Threads of each engine; 0: all cores for a GGUF, else all but one.",
)
@click.option(
    "--context",
    default=2048,
    show_default=True,
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Tokens of a prompt and its answer together; never more than the model was made for.",
)
@click.option(
    "--parallel",
    default=16,
    show_default=True,
    type=click.IntRange(1, 255),
    metavar="N",
    help="Answers that a model writes at once; more calls wait.",
)
@click.option(
    "--adapter-contexts",
    default=3,
    show_default=True,
    type=click.IntRange(0, 255),
    metavar="N",
    help="Adapters of a GGUF with a KV cache of their own at once, beside the base; the others take turns.",
)
@click.option(
    "--kv",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "unified", "apart"]),
    help="Cells of a GGUF's sequences: one pool (least memory) or apart (fastest); auto: apart where "
    "four times its memory is free (of --memory, if given) when it is loaded.",
)
@click.option(
    "--prefixes",
    default=None,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep here, over restarts, what many prompts of a GGUF begin with; it holds their text.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="auto: the GPU when there is one and the installed engines can use it.",
)
@click.option(
    "--memory",
    type=click.IntRange(1),
    metavar="MB",
    help="Of all models together; the one asked longest ago makes room.  [default: what is free]",
)
@click.option(
    "--unload-after",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="Unload a model that nobody has asked for so long; the next call loads it.  [default: never]",
)
@click.option(
    "--patience",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    metavar="SECONDS",
    help="Cut off a client that brings nothing of its request, or takes nothing of its answer, for so long.",
)
@click.option("--home", type=_HOME, help="Run as the member of a fleet that enrolled in this folder.")
@click.option(
    "--heavy-tokens",
    type=click.IntRange(1),
    help="Ask the hub when prompt and answer together have this many tokens.  [default: never]",
)
def serve(
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    projectors: tuple[str, ...],
    host: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    keys: Path | None,
    port: int,
    threads: int,
    context: int,
    parallel: int,
    adapter_contexts: int,
    kv: "Kv",
    prefixes: Path | None,
    device: "Device",
    memory: int | None,
    unload_after: float | None,
    patience: float,
    home: Path | None,
    heavy_tokens: int | None,
) -> None:
    """Serve over OpenAI's API: --model at once and with no hub, or --home as a member of a fleet."""
    from edge_agent.engines.settings import EngineSettings
    from edge_agent.home import Home
    from edge_agent.server import Door

    settings = EngineSettings(
        threads=threads,
        device=device,
        context_tokens=context,
        max_sequences=parallel,
        contexts=1 + adapter_contexts,
        kv=kv,
        prefixes=None if prefixes is None else str(prefixes),
        engine_cache=_engine_cache(),
    )
    if keys is None and home is not None and Home(home).api_keys.exists():
        keys = Home(home).api_keys
    door = Door(host, port, tls_cert, tls_key, keys, patience)
    if home is not None:
        if models or adapters or projectors:
            raise WrongUse(
                "--home: the fleet says what is served; leave out --model, --adapter and --projector"
            )
        if memory is not None or unload_after is not None:
            raise WrongUse("--memory and --unload-after go with --model: what a fleet serves stays loaded")
        if prefixes is not None:
            raise WrongUse(f"--prefixes goes with --model: a member of a fleet has {Home(home).prefixes}")
        from edge_agent.agent import AgentSettings, run

        asyncio.run(run(Home(home), AgentSettings(door, settings, heavy_tokens), _say))
        return
    if heavy_tokens is not None:
        raise WrongUse("--heavy-tokens: only a member of a fleet (--home) has a hub to ask")
    from edge_agent.engines.residence import Residence
    from edge_agent.serve import read_plan
    from edge_agent.serve import serve as serve_files
    from models.machine import free_memory

    residence = Residence(memory and memory * 10**6, unload_after, free_memory)
    plan = read_plan(models, adapters, projectors)
    asyncio.run(serve_files(plan, door, settings, residence, _say))


@main.command()
@click.option("--hub", required=True, metavar="URL", help="https://HOST:8443, as in the token.")
@click.option("--token-file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--home", required=True, type=_HOME, help="The folder that will hold this device's identity.")
@click.option("--device", default=None, metavar="ID", help="This device's id.  [default: the host's name]")
def enroll(hub: str, token_file: Path, home: Path, device: str | None) -> None:
    """Join a hub: make a key here, have it certified, keep the trust anchor."""
    from edge_agent.enroll import join
    from edge_agent.home import Home

    name = device or socket.gethostname().split(".")[0].lower()
    member = join(Home(home), hub, token_file, name)
    _say(f"{member.device} is enrolled at {member.hub_url}; now: outpost-edge serve --home {home}")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A release folder, or an ONNX folder of a model that inspects.",
)
@click.option("--out", required=True, type=_FILE, help="The CSV: file, verdict, score, threshold, error.")
@click.option("--sheet", type=_FILE, help="The contact sheet, a PNG.  [default: OUT with .png]")
@click.option(
    "--shown",
    default=60,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="Pictures on the sheet, the most suspicious first; 0: no sheet.",
)
@click.option("--threads", default=0, type=click.IntRange(0, 512), help="0: all cores.")
@_JSON
def inspect(
    folder: Path, model: Path, out: Path, sheet: Path | None, shown: int, threads: int, as_json: bool
) -> None:
    """Inspect every picture of FOLDER; needs no server. Pictures that cannot be read are listed."""
    from edge_agent.inspect_folder import Asked, inspect_folder

    asked = Asked(folder, model, out, sheet or out.with_suffix(".png"), shown, threads)
    figures = asyncio.run(inspect_folder(asked, _say))
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"{figures['inspected']} inspected, {figures['defects']} defects, {len(figures['unread'])} "
            f"not readable, {figures['pictures_per_second']:g} a second; {out}, {figures['sheet']}"
        )
    if not figures["inspected"]:
        sys.exit(FAILED)


@main.command()
@click.option("--home", required=True, type=_HOME)
@_JSON
def status(home: Path, as_json: bool) -> None:
    """Say what runs on this device and why."""
    from edge_agent.home import Home
    from edge_agent.status import as_text, read_status

    found = asyncio.run(read_status(Home(home)))
    click.echo(json.dumps(found) if as_json else as_text(found))


@main.group()
def key() -> None:
    """API keys: needed to call this device from other machines, optional on the loopback."""


_KEYS = click.option("--keys", type=_FILE, help="The file of keys.")
_KEYS_HOME = click.option("--home", type=_HOME, help="Instead of --keys: the file of this home.")


@key.command()
@_KEYS
@_KEYS_HOME
@click.option("--name", required=True, help="Whose key it is; shown in logs and messages.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Calls that may begin.  [default: any]")
@click.option("--at-once", type=click.IntRange(1), help="Calls that may run together.  [default: any]")
@_JSON
def create(
    keys: Path | None,
    home: Path | None,
    name: str,
    requests_per_minute: int | None,
    at_once: int | None,
    as_json: bool,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from edge_agent.keys import create_key

    path = _key_file(keys, home)
    secret = create_key(path, name, requests_per_minute, at_once)
    click.echo(json.dumps({"name": name, "key": secret}) if as_json else secret)
    _say(f"{name} is in {path}, which holds only a hash of it: keep the key, it is not shown again")


@key.command("list")
@_KEYS
@_KEYS_HOME
@_JSON
def list_keys(keys: Path | None, home: Path | None, as_json: bool) -> None:
    """Show the names and limits of the keys."""
    from edge_agent.keys import read_keys

    known = [key.model_dump(exclude={"sha256"}) for key in read_keys(_key_file(keys, home))]
    if as_json:
        click.echo(json.dumps({"keys": known}))
        return
    for one in known:
        rate, at_once = one["requests_per_minute"], one["at_once"]
        click.echo(f"{one['name']}  {rate or 'any'} a minute, {at_once or 'any'} at once")


@key.command()
@_KEYS
@_KEYS_HOME
@click.argument("name")
def revoke(keys: Path | None, home: Path | None, name: str) -> None:
    """Forget a key; a running server lets it in no longer."""
    from edge_agent.keys import revoke_key

    revoke_key(_key_file(keys, home), name)
    _say(f"{name} is revoked")


def _key_file(keys: Path | None, home: Path | None) -> Path:
    if (keys is None) == (home is None):
        raise WrongUse("--keys FILE or --home DIR is needed, and not both; for example: --keys keys.json")
    if keys is not None:
        return keys
    from edge_agent.home import Home

    return Home(home or Path()).api_keys


def _engine_cache() -> str | None:
    """Where engines that are built here are kept, of a user who has a home."""
    try:
        return str(Path.home() / ".cache" / "outpost" / "engines")
    except RuntimeError:
        return None


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
