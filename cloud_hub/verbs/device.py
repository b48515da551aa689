"""``outpost-hub device``: enrolment tokens, and devices to list or revoke."""

import secrets
from pathlib import Path

import click

from cloud_hub import access, registry
from cloud_hub.home import Home
from cloud_hub.verbs.common import POSITIVE, emit, home_option, json_option, seconds, writing
from models.digest import Digest
from models.store import write_durably
from sync.identity import EnrolmentToken, certificate_digest


@click.group()
def device() -> None:
    """Create enrolment tokens; revoke devices."""


@device.command()
@home_option
@click.option("--group", required=True, help="The group that the device joins.")
@click.option("--hours", type=POSITIVE, default=24.0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the token to a file.")
@json_option
def token(home: Home, group: str, hours: float, out: Path | None, as_json: bool) -> None:
    """Create a one-time enrolment token; the trust anchor is inside."""
    settings = home.settings()
    with writing(home) as connection:
        secret = access.create_enrolment(connection, group, seconds(), hours * 3600, secrets.token_bytes)
    made = EnrolmentToken(
        hub_url=f"https://{settings.hosts[0]}:{settings.people_port}",
        secret=secret,
        ca=certificate_digest(home.ca_certificate.read_bytes()),
        root=Digest.of(home.repository.root),
    ).encode()
    if out is not None:
        write_durably(out, made.encode() + b"\n", mode=0o600)
    emit(
        as_json,
        {"token": made, "group": group},
        made if out is None else f"Token for {group} written to {out}.",
    )


@device.command()
@home_option
@click.argument("device_id")
@json_option
def revoke(home: Home, device_id: str, as_json: bool) -> None:
    """Refuse a device from now on: its requests, its reports and its trail."""
    with writing(home) as connection:
        registry.revoke_device(connection, device_id, seconds())
    emit(as_json, {"revoked": device_id}, f"Device {device_id} is revoked.")
