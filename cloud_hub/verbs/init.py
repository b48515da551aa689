"""``outpost-hub init``: a new hub's home, database and first admin token."""

import secrets
from pathlib import Path

import click

from cloud_hub.errors import WrongUse
from cloud_hub.home import Home, Settings
from cloud_hub.verbs.common import database, emit, home_option, json_option, now, seconds


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
@click.option("--people-port", type=int, default=8443, show_default=True)
@click.option("--device-port", type=int, default=8444, show_default=True)
@click.option("--broker-port", type=int, default=8883, show_default=True)
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
    url: str | None,
    as_json: bool,
) -> None:
    """Make this hub: online keys, database, first admin token."""
    from cloud_hub import access
    from cloud_hub.database import Database

    if root.name != "root.json":
        raise WrongUse("--root: name root.json inside the folder that keys init made for the hub")
    settings = Settings(
        hosts=hosts or ("localhost", "127.0.0.1"),
        bind=bind,
        people_port=people_port,
        device_port=device_port,
        broker_port=broker_port,
        database=url,
    )
    if url is not None:
        Database.open(url).close()
    home.create(settings, root.parent, now())
    with database(home) as opened, opened.write() as connection:
        token = access.create_token(
            connection, access.Role.ADMIN, "first admin", seconds(), secrets.token_bytes
        )
    console = f"https://{settings.hosts[0]}:{people_port}/console"
    emit(
        as_json,
        {"home": str(home.root), "token": token, "console": console, "ca": str(home.ca_certificate)},
        f"Hub made in {home.root}. The admin token, shown once:\n\n  {token}\n\n"
        f"Start it: outpost-hub serve --home {home.root}\nThen open {console}",
    )
