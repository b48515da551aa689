"""``outpost-hub upstream``: the OpenAI-compatible servers behind the gateway."""

from pathlib import Path
from urllib.parse import urlsplit

import click

from cloud_hub import registry
from cloud_hub.errors import WrongUse
from cloud_hub.home import Home
from cloud_hub.routing import Upstream
from cloud_hub.verbs.common import emit, home_option, json_option, reading, table, writing


@click.group()
def upstream() -> None:
    """The OpenAI-compatible servers behind the gateway."""


@upstream.command()
@home_option
@click.option("--name", required=True)
@click.option("--url", required=True, help="Its address up to, not including, /v1.")
@click.option("--model", required=True, help="The model, as the upstream calls it.")
@click.option("--accept", "accepts", multiple=True, help="A further name clients may ask for; * for any.")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with its API key."
)
@json_option
def add(
    home: Home,
    name: str,
    url: str,
    model: str,
    accepts: tuple[str, ...],
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Add an upstream, or replace the one of that name."""
    for option, value in (("--name", name), ("--model", model)):
        if not value.strip():
            raise WrongUse(f"{option}: must not be empty")
    _demand_address(url)
    if key_file is not None:
        _demand_key(key_file)
    made = Upstream(
        name,
        url.rstrip("/").removesuffix("/v1"),
        model,
        accepts,
        str(key_file.absolute()) if key_file else None,
    )
    with writing(home) as connection:
        registry.add_upstream(connection, made)
    emit(as_json, _facts(made), f"Requests for {model} go to {name} ({made.url}).")


@upstream.command()
@home_option
@click.argument("name")
@json_option
def remove(home: Home, name: str, as_json: bool) -> None:
    """Forget an upstream."""
    with writing(home) as connection:
        registry.remove_upstream(connection, name)
    emit(as_json, {"removed": name}, f"Upstream {name} is removed.")


@upstream.command("list")
@home_option
@json_option
def list_upstreams(home: Home, as_json: bool) -> None:
    """List upstreams."""
    with reading(home) as connection:
        found = registry.upstreams(connection)
    rows = [(each.name, each.model, ", ".join(each.accepts), each.url) for each in found]
    emit(
        as_json,
        {"upstreams": [_facts(each) for each in found]},
        table(("NAME", "MODEL", "ALSO ACCEPTS", "URL"), rows),
    )


def _demand_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise WrongUse(f"--url: {url!r}: {error}") from error
    if not whole:
        raise WrongUse(f"--url: an http or https address, not {url!r}")


def _demand_key(path: Path) -> None:
    """The gateway reads it at each request; a file that is no key should be found out now."""
    key = path.read_bytes().strip()
    if not key or not key.isascii() or len(key.split()) != 1:
        raise WrongUse(f"--key-file: {path} does not hold an API key: one line of ASCII")


def _facts(upstream: Upstream) -> dict[str, object]:
    return {
        "name": upstream.name,
        "url": upstream.url,
        "model": upstream.model,
        "accepts": list(upstream.accepts),
    }
