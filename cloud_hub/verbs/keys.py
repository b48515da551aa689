"""``outpost-hub keys``: the offline keys. Needs no hub, and should not run on one."""

from pathlib import Path

import click

from cloud_hub.verbs.common import emit, json_option, now


@click.group()
def keys() -> None:
    """Make the offline keys, on a machine that is not the hub."""


@keys.command("init")
@click.option(
    "--offline", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where the keys go."
)
@click.option(
    "--threshold", type=click.IntRange(1, 9), default=1, show_default=True, help="Keys that must sign."
)
@json_option
def init(offline: Path, threshold: int, as_json: bool) -> None:
    """Make root and release keys, the auditor's key pair, and the folder to carry to the hub."""
    from sync.repository import keys_init

    keys_init(offline, threshold, now())
    emit(
        as_json,
        {"offline": str(offline), "hub_folder": str(offline / "hub"), "threshold": threshold},
        f"Keys made in {offline}. Each of root and targets needs {threshold} of {threshold + 1} keys.\n"
        f"Carry {offline / 'hub'} to the hub, then: outpost-hub init --root {offline / 'hub' / 'root.json'}\n"
        "Everything else stays on this machine.",
    )
