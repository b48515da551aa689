"""``outpost-hub init``: a new hub's home, database and first admin token."""

import contextlib
import secrets
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from cloud_hub.errors import WrongUse
from cloud_hub.home import Home, Settings
from cloud_hub.verbs.common import emit, home_option, json_option, now, seconds
from models.store import make_folder

PORT = click.IntRange(1, 65535)


@click.command()
@home_option
@click.option(
    "--root",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="root.json in the folder that keys init made for the hub.",
)
@click.option(
    "--host", "hosts", multiple=True, help="Name or address devices use; repeat for more.  [localhost]"
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--people-port", type=PORT, default=8443, show_default=True)
@click.option("--device-port", type=PORT, default=8444, show_default=True)
@click.option("--broker-port", type=PORT, default=8883, show_default=True)
@click.option("--broker-host", help="Where devices find a broker that is not this hub's.  [the first --host]")
@click.option("--database", "url", help="PostgreSQL URL.  [SQLite in the home]")
@json_option
def init(
    home: Home,
    root: Path,
    hosts: tuple[str, ...],
    bind: str,
    people_port: int,
    device_port: int,
    broker_port: int,
    broker_host: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Make this hub: online keys, database, first admin token."""
    from cloud_hub import access
    from cloud_hub.database import Database

    carried = _carried(root)
    home.demand_new()
    settings = _settings(
        hosts=hosts or ("localhost", "127.0.0.1"),
        bind=bind,
        people_port=people_port,
        device_port=device_port,
        broker_port=broker_port,
        broker_host=broker_host,
        database=url,
    )
    if url is None:
        make_folder(home.root)
    with contextlib.closing(Database.open(home.database_url(settings))) as opened:
        opened.migrate()
        with opened.write() as connection:  # one transaction around both: a home has its admin token
            token = access.create_token(
                connection, access.Role.ADMIN, "first admin", seconds(), secrets.token_bytes
            )
            home.create(settings, carried, now())
    console = f"https://{settings.hosts[0]}:{people_port}/console"
    emit(
        as_json,
        {"home": str(home.root), "token": token, "console": console, "ca": str(home.ca_certificate)},
        f"Hub made in {home.root}. The admin token, shown once:\n\n  {token}\n\n"
        f"Start it: outpost-hub serve --home {home.root}\nThen open {console}",
    )


def _carried(root: Path) -> Path:
    """The folder that ``keys init`` made for the hub, when ``root`` is the root.json in it."""
    from sync.repository import CARRIED

    folder = root.absolute().parent
    missing = [name for name in CARRIED if not (folder / name).is_file()]
    if root.name == CARRIED[0] and not missing:
        return folder
    meant = folder / "hub" / CARRIED[0]
    why = f"{folder} has no {', no '.join(missing)}" if root.name == CARRIED[0] else f"{root} is another file"
    hint = str(meant) if meant.is_file() else f"the {CARRIED[0]} in the folder hub that keys init made"
    raise WrongUse(f"--root: {why}; give {hint}")


def _settings(**values: Any) -> Settings:
    """Raises ``WrongUse`` naming the option."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        option = {"hosts": "host"}.get(name, name).replace("_", "-")
        raise WrongUse(f"--{option}: {first['msg'].removeprefix('Value error, ')}") from error
