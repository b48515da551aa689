"""``outpost-hub audit``: export trails; verify and open them with no hub at all."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import click

from cloud_hub import ingest, registry
from cloud_hub.errors import NotFound
from cloud_hub.home import Home
from cloud_hub.verbs.common import counted, emit, home_option, json_option, reading
from models.errors import ModelsError
from models.store import make_folder, write_durably
from sync.errors import AuditBroken, InvalidMessage
from sync.identity import encode_public
from sync.verify import open_trail, read_auditor_key, read_device_keys, read_ring, verify_file

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def audit() -> None:
    """Export, verify and open audit trails."""


@audit.command()
@home_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--device", "only", multiple=True, help="Only this device; repeat for more.  [all]")
@click.option(
    "--keyring/--no-keyring", default=True, show_default=True, help="Also export the sealed data keys."
)
@json_option
def export(home: Home, out: Path, only: tuple[str, ...], keyring: bool, as_json: bool) -> None:
    """Write trail files, the devices' public keys and the sealed key ring to a folder."""
    trails, keys, ring = [], {}, []
    with reading(home) as connection:
        rows = registry.devices(connection)
        if unknown := sorted(set(only) - {row.id for row in rows}):
            raise NotFound(f"--device: no device {unknown[0]!r} ever enrolled here")
        make_folder(out)
        for row in rows:
            if not only or row.id in only:
                keys[row.id] = {
                    str(epoch): encode_public(key)
                    for epoch, key in registry.keys_of(connection, row.id).items()
                }
                ring += list(ingest.export_ring(connection, row.id))
        for kept in ingest.audit_rows(connection):
            if kept.device in keys:
                path = out / f"{kept.device}-{kept.epoch}.jsonl"
                with path.open("wb") as file:
                    file.writelines(ingest.export_trail(connection, kept.device, kept.epoch))
                trails.append(path)
    write_durably(out / "device-keys.json", json.dumps(keys, indent=2).encode())
    if keyring:
        write_durably(out / "keyring.jsonl", b"".join(ring), mode=0o600)
    emit(
        as_json,
        {
            "trails": [str(path) for path in trails],
            "device_keys": str(out / "device-keys.json"),
            "keyring": str(out / "keyring.jsonl") if keyring else None,
        },
        f"{counted(len(trails), 'trail')} written to {out}. Check: outpost-hub audit verify {out}/*-*.jsonl "
        f"--device-keys {out}/device-keys.json",
    )


@audit.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--device-keys", type=FILE, required=True, help="Public keys, by device id.")
@json_option
def verify(files: tuple[Path, ...], device_keys: Path, as_json: bool) -> None:
    """Verify trail files from the files and the public keys alone. Exit 3 names the broken record."""
    with _naming(device_keys):
        keys = read_device_keys(device_keys)
    facts = []
    for path in files:
        with _naming(path):
            facts.append(verify_file(path, keys))
    lines = [
        f"{each.device} epoch {each.epoch}: {counted(each.records, 'record')}"
        f" verif{'ies' if each.records == 1 else 'y'} ({each.withheld} by hash alone), root {each.root[:16]}"
        for each in facts
    ]
    verified = [
        {
            "device": each.device,
            "epoch": each.epoch,
            "records": each.records,
            "withheld": each.withheld,
            "root": each.root,
            "erased_keys": sorted(each.erased_keys),
        }
        for each in facts
    ]
    emit(as_json, {"verified": verified}, "\n".join(lines))


@audit.command("open")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--device-keys", type=FILE, required=True, help="Public keys, by device id.")
@click.option("--keyring", type=FILE, required=True, help="The sealed data keys.")
@click.option("--auditor-key", type=FILE, required=True, help="The auditor's private key.")
@json_option
def open_files(
    files: tuple[Path, ...], device_keys: Path, keyring: Path, auditor_key: Path, as_json: bool
) -> None:
    """Decrypt verified trail files, as the auditor."""
    with _naming(device_keys):
        keys = read_device_keys(device_keys)
    ring, auditor = read_ring(keyring), read_auditor_key(auditor_key)
    opened = []
    for path in files:
        with _naming(path):
            records = list(open_trail(path, keys, ring, auditor))
        for each in records:
            leaf = each.leaf
            opened.append(
                {
                    "device": leaf.device,
                    "epoch": leaf.epoch,
                    "seq": leaf.seq,
                    "kind": leaf.kind,
                    "request_id": leaf.request_id,
                    "at": leaf.at,
                    "data_class": leaf.data_class,
                    "facts": leaf.facts,
                    "body": each.body.decode("utf-8", "replace") if each.body is not None else None,
                    "why_not": each.why,
                }
            )
    text = "\n".join(
        f"{each['device']} {each['epoch']}/{each['seq']} {each['kind']} {each['data_class']}: "
        f"{each['body'] if each['body'] is not None else '[' + str(each['why_not']) + ']'}"
        for each in opened
    )
    emit(as_json, {"records": opened}, text)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong, and in which of the files."""
    try:
        yield
    except AuditBroken as error:
        raise AuditBroken(f"{path}: {error}") from error
    except ModelsError as error:
        raise InvalidMessage(f"{path}: {error}") from error
