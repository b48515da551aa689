"""``outpost-hub serve``: run the hub."""

import asyncio
import json
import logging
import secrets
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from cloud_hub.errors import HubError, WrongUse
from cloud_hub.home import Home
from cloud_hub.verbs.common import home_option


@click.command()
@home_option
@click.option(
    "--broker",
    help="Where to find an MQTT 5 broker, mqtts://HOST:PORT.  [--broker-host of init, or embedded]",
)
@click.option(
    "--tap",
    type=click.Path(file_okay=False, path_type=Path),
    help="Record every byte received after TLS in DIR.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
def serve(home: Home, broker: str | None, tap: Path | None, as_json: bool) -> None:
    """Run the hub: API, console, device listener, broker."""
    from cloud_hub.hub import Clocks, run

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "uvicorn", "tuf.api._payload"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    settings = home.settings()
    if tap is not None:
        tap.mkdir(parents=True, exist_ok=True)

    def ready(addresses: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(addresses))
        else:
            click.echo("The hub runs.  " + "  ".join(f"{name}: {at}" for name, at in addresses.items()))
        sys.stdout.flush()

    try:
        asyncio.run(
            run(
                home,
                Clocks(time.time, time.monotonic),
                lambda: secrets.token_hex(8),
                _address(broker) if broker is not None else settings.external_broker,
                tap.absolute() if tap else None,
                ready,
            )
        )
    except OSError as error:
        raise HubError(f"the hub cannot run: {error}") from error


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise WrongUse(f"--broker: {url!r}: {error}") from error
    if parts.scheme != "mqtts" or not host or port == 0:
        raise WrongUse(f"--broker: mqtts://HOST:PORT, not {url!r}")
    return host, port or 8883
