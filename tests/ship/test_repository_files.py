"""The repository and its files: which root judges at publication, and errors that name the file."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from ship_world import NOW, World
from tuf.api.metadata import Metadata, Root, Targets

from models.errors import InvalidManifest
from models.store import read_release, verify_release
from sync.errors import InvalidMessage, UntrustedRelease, WrongKeys
from sync.identity import load_device_key, private_pem
from sync.repository import Repository, keys_init, sign_release


@pytest.fixture
def offline(tmp_path):
    keys_init(tmp_path / "offline", 1, NOW)
    return tmp_path / "offline"


@pytest.fixture
def release(tmp_path):
    world = World(tmp_path / "world")
    world.release("tiny", "1.0.0", {"says": "one"})
    return world.folder / "releases" / "tiny-1.0.0"


def second_root(offline: Path, targets_key: Ed25519PrivateKey, *signers: Ed25519PrivateKey) -> bytes:
    """A root, version 2, in which ``targets_key`` stands for all targets keys of the first."""
    metadata = Metadata[Root].from_bytes((offline / "root.json").read_bytes())
    for keyid in list(metadata.signed.roles[Targets.type].keyids):
        metadata.signed.revoke_key(keyid, Targets.type)
    metadata.signed.add_key(CryptoSigner(targets_key).public_key, Targets.type)
    metadata.signed.version = 2
    metadata.signed.expires = NOW + timedelta(days=700)
    metadata.signatures.clear()
    for key in signers:
        metadata.sign(CryptoSigner(key), append=True)
    return metadata.to_bytes()


def test_the_newest_root_judges_what_is_published(tmp_path, offline, release):
    repository, targets = Repository(tmp_path / "repository"), offline / "targets.json"
    repository.create(offline / "hub", NOW)
    old = offline / "targets-1.pem"
    first_root, other = load_device_key((offline / "root-1.pem").read_bytes()), Ed25519PrivateKey.generate()
    sign_release(release, targets, [old], NOW)
    (repository.metadata / "2.root.json").write_bytes(second_root(offline, other, other))
    with pytest.raises(WrongKeys, match=r"2\.root\.json is signed by 0 of the 1 root keys"):
        repository.publish(release, targets, NOW)
    (repository.metadata / "2.root.json").write_bytes(second_root(offline, other, first_root))
    with pytest.raises(WrongKeys, match=r"targets\.json is signed by 0 of the 1 targets keys"):
        repository.publish(release, targets, NOW)  # by a key that devices no longer believe
    (offline / "new.pem").write_bytes(private_pem(other))
    sign_release(release, targets, [offline / "new.pem"], NOW)
    assert repository.publish(release, targets, NOW).targets_version == 2


def test_a_missing_signature_says_how_many_are_missing(tmp_path, release):
    keys_init(tmp_path / "two", 2, NOW)
    repository, targets = Repository(tmp_path / "repository"), tmp_path / "two" / "targets.json"
    repository.create(tmp_path / "two" / "hub", NOW)
    sign_release(release, targets, [tmp_path / "two" / "targets-1.pem"], NOW)
    with pytest.raises(WrongKeys) as caught:
        repository.publish(release, targets, NOW)
    assert str(caught.value) == (
        f"{targets} is signed by 1 of the 2 targets keys that must sign; "
        "1 more is needed: outpost-hub release sign … --key KEY"
    )


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"signed": 1}'])
def test_errors_name_the_file(tmp_path, offline, release, content):
    wrong = tmp_path / "wrong.file"
    wrong.write_bytes(content)
    targets = offline / "targets.json"
    with pytest.raises(InvalidMessage, match=str(wrong)):
        sign_release(release, targets, [wrong], NOW)
    with pytest.raises(InvalidMessage, match=r"auditor\.pem"):
        sign_release(release, targets, [offline / "auditor.pem"], NOW)
    with pytest.raises(UntrustedRelease, match=str(wrong)):
        sign_release(release, wrong, [offline / "targets-1.pem"], NOW)
    with pytest.raises(UntrustedRelease, match=r"root\.json holds root metadata; a targets\.json"):
        sign_release(release, offline / "root.json", [offline / "targets-1.pem"], NOW)
    for name in ("root.json", "targets.json", "snapshot.pem", "timestamp.pem"):
        keys_init(tmp_path / name, 1, NOW)
        spoilt = tmp_path / name / "hub" / name
        spoilt.write_bytes(content)
        with pytest.raises((InvalidMessage, UntrustedRelease), match=str(spoilt)):
            Repository(tmp_path / name / "repository").create(spoilt.parent, NOW)
        assert not (tmp_path / name / "repository").exists()
    (release / "release.json").write_bytes(content)
    with pytest.raises(InvalidManifest, match=str(release / "release.json")):
        read_release(release)


def test_a_folder_that_is_no_release_is_named_however_it_was_given(tmp_path, release, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidManifest, match=f"^{tmp_path} is no release folder"):
        read_release(Path())
    listed = json.loads((release / "release.json").read_bytes())["files"][0]["path"]
    (release / listed).unlink()
    with pytest.raises(InvalidManifest, match=str(release / listed)):
        verify_release(release)
