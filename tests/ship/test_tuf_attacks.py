"""The attacks of the TUF specification against a device, each through the real client and real metadata."""

import json
import shutil
from datetime import timedelta
from itertools import repeat
from pathlib import Path

import pytest
from ship_world import NOW, FolderFetcher, World, assignment

from sync.errors import (
    EndlessData,
    LinkDown,
    MetadataExpired,
    MetadataMixed,
    RolledBack,
    StaleDesired,
    UntrustedRelease,
    WrongKeys,
)
from sync.protocol import Desired
from sync.trust import Approved, Vouched, agree
from sync.tuf_client import TufClient


class Scene:
    """A device that trusted the repository when it offered version 1; version 2 is out now."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder / "hub")
        self.one = self.world.release("tiny", "1.0.0", {"says": "one"})
        self.fetcher = FolderFetcher(self.world.repository.metadata.parent)
        self.trusted = folder / "tuf"
        self.client = TufClient(self.trusted, "https://hub/tuf", self.world.repository.root, self.fetcher)
        self.client.vouch(self.one.target_path, NOW)
        self.before = shutil.copytree(self.metadata, folder / "before")
        self.two = self.world.release("tiny", "2.0.0", {"says": "two"})

    @property
    def metadata(self) -> Path:
        return self.world.repository.metadata

    def old(self, name: str) -> bytes:
        return (self.before / name).read_bytes()

    def versions(self) -> dict[str, int]:
        """What the device trusts, by role."""
        return {p.stem: json.loads(p.read_bytes())["signed"]["version"] for p in self.trusted.glob("*.json")}

    def attack(self, error: type[Exception], path: str, data, now=NOW) -> None:
        """The attack fails by name; trust never moves back; an honest answer afterwards is taken."""
        trusted = self.versions()
        self.fetcher.replace = {path: data}
        with pytest.raises(error) as caught:
            self.client.vouch(self.two.target_path, now)
        assert type(caught.value) is error
        assert trusted.keys() == {"root", "timestamp", "snapshot", "targets"}
        assert all(self.versions()[role] >= version for role, version in trusted.items())
        self.fetcher.replace = {}
        assert self.client.vouch(self.two.target_path, NOW).release == self.two.release


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_rollback_of_the_timestamp(scene):
    assert scene.client.vouch(scene.two.target_path, NOW).release == scene.two.release
    scene.attack(RolledBack, "metadata/timestamp.json", scene.old("timestamp.json"))


def test_freeze_is_told_by_the_date(scene):
    later = NOW + timedelta(days=2)
    scene.attack(MetadataExpired, "metadata/timestamp.json", scene.old("timestamp.json"), now=later)


def test_mix_and_match_of_snapshots(scene):
    newest = max(int(p.name.split(".")[0]) for p in scene.metadata.glob("*.snapshot.json"))
    oldest = scene.old("1.snapshot.json")
    scene.attack(MetadataMixed, f"metadata/{newest}.snapshot.json", oldest)


def test_another_manifest_under_the_signed_name(scene):
    folder, _, name = scene.two.target_path.rpartition("/")
    path = f"targets/{folder}/{scene.two.release.hex}.{name}"
    honest = (scene.metadata.parent / path).read_bytes()
    scene.attack(MetadataMixed, path, honest.replace(b'"q8_0"', b'"q4_0"'))


@pytest.mark.parametrize("where", ["timestamp", "manifest"])
def test_endless_data(scene, where):
    folder, _, name = scene.two.target_path.rpartition("/")
    manifest = f"targets/{folder}/{scene.two.release.hex}.{name}"
    path = "metadata/timestamp.json" if where == "timestamp" else manifest
    scene.attack(EndlessData, path, repeat(b"{" * 4096))


def test_metadata_signed_by_other_keys(scene, tmp_path):
    thief = World(tmp_path / "thief")
    for number in range(3):
        thief.release("evil", f"1.0.{number}", {"says": "evil"})
    stolen = (thief.repository.metadata / "timestamp.json").read_bytes()
    scene.attack(WrongKeys, "metadata/timestamp.json", stolen)


def test_nonsense_and_unlisted_targets(scene):
    scene.attack(UntrustedRelease, "metadata/timestamp.json", b'{"signed": []}')
    with pytest.raises(UntrustedRelease, match="do not list"):
        scene.client.vouch("releases/model/tiny/9.9.9/release.json", NOW)


def test_a_dead_link_is_no_attack(scene):
    scene.fetcher.down = True
    with pytest.raises(LinkDown):
        scene.client.vouch(scene.two.target_path, NOW)


def test_agreement_needs_the_same_bytes_from_both_sides(scene):
    vouched = scene.client.vouch(scene.two.target_path, NOW)
    wanted = assignment(scene.two)
    desired = Desired(device="press-4", version=3, issued_at=0, assignments=(wanted,))
    approved = agree(desired, 3, wanted, vouched)
    assert approved.manifest.version == "2.0.0"
    with pytest.raises(StaleDesired):
        agree(desired, 4, wanted, vouched)
    with pytest.raises(UntrustedRelease):  # the director names other bytes
        lying = wanted.model_copy(update={"release": scene.one.release})
        agree(desired.model_copy(update={"assignments": (lying,)}), 3, lying, vouched)
    with pytest.raises(UntrustedRelease):  # not wanted here
        agree(desired, 3, assignment(scene.one), vouched)
    with pytest.raises(UntrustedRelease):  # the right bytes under another version
        renamed = wanted.model_copy(update={"version": "3.0.0"})
        agree(desired.model_copy(update={"assignments": (renamed,)}), 3, renamed, vouched)
    with pytest.raises(MetadataMixed):
        agree(desired, 3, wanted, Vouched(vouched.target_path, vouched.release, vouched.data + b" "))
    with pytest.raises(UntrustedRelease):
        Approved(wanted, approved.manifest, object())
