"""``outpost-hub release``: sign offline, publish at the hub, list."""

import shutil
from pathlib import Path

import click

from cloud_hub import registry
from cloud_hub.errors import Refused
from cloud_hub.figures import figure_facts, figure_rows, measured
from cloud_hub.home import Home
from cloud_hub.verbs.common import age, emit, home_option, json_option, now, reading, seconds, table, writing
from models.store import TARGETS_FILE, read_release

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def release() -> None:
    """Sign a release offline; publish a signed one."""


@release.command()
@click.argument("folder", type=FOLDER)
@click.option("--targets", type=FILE, required=True, help="targets.json beside the offline keys.")
@click.option(
    "--key", "keys", type=FILE, multiple=True, required=True, help="A targets key; repeat for more."
)
@json_option
def sign(folder: Path, targets: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """List the release in FOLDER in targets.json and sign it. Needs no hub."""
    from sync.repository import sign_release

    published = sign_release(folder, targets, keys, now())
    shutil.copyfile(targets, folder / TARGETS_FILE)
    manifest = published.manifest
    emit(
        as_json,
        {
            "release": published.release,
            "target_path": published.target_path,
            "targets": published.targets_version,
        },
        f"{manifest.slot} {manifest.version} ({published.release}) is signed in targets version "
        f"{published.targets_version}.\nCarry {folder} to the hub, then: outpost-hub release publish DIR",
    )


@release.command()
@home_option
@click.argument("folder", type=FOLDER)
@click.option("--targets", type=FILE, help="The signed targets.json.  [the one in FOLDER]")
@json_option
def publish(home: Home, folder: Path, targets: Path | None, as_json: bool) -> None:
    """Put the signed release in FOLDER into the repository. Devices run it when a rollout says so."""
    home.settings()
    if targets is None and not (folder / TARGETS_FILE).is_file():
        raise Refused(f"{folder} is not signed: it has no {TARGETS_FILE} (or name one with --targets)")
    with home.repository_lock():
        published = home.repository.publish(folder, targets or folder / TARGETS_FILE, now())
    _, data = read_release(folder)
    with writing(home) as connection:
        registry.add_release(connection, published.release, data, seconds())
    manifest = published.manifest
    emit(
        as_json,
        {
            "release": published.release,
            "name": f"{manifest.slot}@{manifest.version}",
            "target_path": published.target_path,
        },
        f"{manifest.slot}@{manifest.version} is published ({published.release}).",
    )


@release.command("list")
@home_option
@json_option
def list_releases(home: Home, as_json: bool) -> None:
    """List what is published."""
    with reading(home) as connection:
        rows = registry.releases(connection)
    emit(
        as_json,
        {
            "releases": [
                {
                    "name": f"{row.manifest.slot}@{row.manifest.version}",
                    "release": row.digest,
                    "published_at": row.published_at,
                }
                for row in rows
            ]
        },
        table(
            ("RELEASE", "DIGEST", "PUBLISHED"),
            [
                (
                    f"{row.manifest.slot}@{row.manifest.version}",
                    row.digest.hex[:12],
                    age(row.published_at, seconds()),
                )
                for row in rows
            ],
        ),
    )


@release.command()
@home_option
@click.option("--release", "reference", help="NAME@VERSION, KIND/NAME@VERSION or a digest.  [default: all]")
@json_option
def figures(home: Home, reference: str | None, as_json: bool) -> None:
    """Show what devices measured; with --json, as outpost-compile --figures reads it."""
    with reading(home) as connection:
        wanted = None if reference is None else registry.find_release(connection, reference).digest
        manifests = {row.digest: row.manifest for row in registry.releases(connection)}
        found = [
            figure_facts(row, manifests[row.release])
            for row in figure_rows(connection)
            if wanted is None or row.release == wanted
        ]
    rows = [
        (
            each["device"],
            each["profile"] or "",
            f"{each['kind']}/{each['name']}@{each['version']}",
            measured(each),
        )
        for each in found
    ]
    emit(as_json, {"figures": found}, table(("DEVICE", "PROFILE", "RELEASE", "MEASURED"), rows))
