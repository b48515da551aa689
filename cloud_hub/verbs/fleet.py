"""``outpost-hub fleet``: what runs where, and why."""

import click

from cloud_hub import view
from cloud_hub.home import Home
from cloud_hub.snapshot import read_rows
from cloud_hub.verbs.common import age, emit, home_option, json_option, reading, seconds, table


@click.group()
def fleet() -> None:
    """What runs where, and why."""


@fleet.command()
@home_option
@json_option
def status(home: Home, as_json: bool) -> None:
    """Show devices, releases, rollouts and the audit state."""
    settings = home.settings()
    with reading(home) as connection:
        rows = read_rows(connection)
    picture = view.picture(rows, seconds(), settings.stale_after_seconds)
    lines = []
    for device in picture["devices"]:
        running = ", ".join(
            f"{each['name']} {each['version']} ({each['state']})" for each in device["running"]
        )
        last = age(device["heard_at"], seconds())
        lines.append((device["id"], device["group"], device["presence"], running or "nothing", last))
    text = table(("DEVICE", "GROUP", "STATE", "RUNNING", "HEARD"), lines)
    for device in picture["devices"]:
        for each in device["rollbacks"]:
            text += f"\n{device['id']}: {each['name']} {each['version']} rolled back: {each['reason']}"
    emit(as_json, picture, text)
