"""What ``outpost-edge serve --model`` takes, and what it refuses before anything is loaded."""

from pathlib import Path

import pytest

from edge_agent.errors import CannotListen, NotLoopback, UnfitRelease, WrongUse
from edge_agent.serve import read_plan
from edge_agent.server import Door, listen
from models import canonical
from models.digest import Digest
from models.errors import DigestMismatch
from models.manifest import MANIFEST_FILE, AdapterFacts, Kind, Manifest
from models.store import describe_file, write_release


def release(folder: Path, kind: Kind, base: Digest | None = None) -> Digest:
    """A release folder with one small file; an adapter was checked against ``base``."""
    weights = folder.parent / f"{folder.name}.gguf"
    weights.write_bytes(b"GGUF" + folder.name.encode())
    facts = (
        AdapterFacts(base_name="smol", trained_on=base, checked_against=(base,), rank=8, targets=("q",))
        if base
        else None
    )
    manifest = Manifest(
        kind=kind,
        name=folder.name,
        version="1.0.0",
        format="gguf",
        precision="q8_0",
        files=(describe_file(weights, "model.gguf"),),
        adapter=facts,
        license="Apache-2.0",
    )
    return write_release(folder, manifest, {"model.gguf": weights})


def test_release_folders_are_verified_and_fit_together(tmp_path: Path) -> None:
    base = release(tmp_path / "smol", Kind.MODEL)
    rider = release(tmp_path / "tickets", Kind.ADAPTER, base)
    plan = read_plan([f"smol={tmp_path}/smol"], [f"tickets={tmp_path}/tickets"])
    assert (plan.models[0].release, plan.adapters[0][0], plan.adapters[0][1].release) == (base, "smol", rider)
    assert plan.models[0].weights == tmp_path / "smol" / "model.gguf"


def test_a_release_is_known_by_the_bytes_that_its_maker_wrote(tmp_path: Path) -> None:
    release(tmp_path / "smol", Kind.MODEL)
    written = tmp_path / "smol" / MANIFEST_FILE
    written.write_bytes(
        canonical.encode({**canonical.decode(written.read_bytes()), "from_a_later": "version"})
    )
    plan = read_plan([f"smol={tmp_path}/smol"], [])
    assert plan.models[0].release == Digest.of(written.read_bytes())


def test_a_release_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    release(tmp_path / "smol", Kind.MODEL)
    release(tmp_path / "other", Kind.ADAPTER, Digest.of(b"another base"))
    with pytest.raises(UnfitRelease, match="never checked"):
        read_plan([f"smol={tmp_path}/smol"], [f"other={tmp_path}/other"])
    with pytest.raises(UnfitRelease, match="kind adapter"):
        read_plan([f"smol={tmp_path}/other"], [])
    (tmp_path / "smol" / "model.gguf").write_bytes(b"GGUFsmoL")
    with pytest.raises(DigestMismatch, match=r"model\.gguf"):
        read_plan([f"smol={tmp_path}/smol"], [])


@pytest.mark.parametrize(
    ("models", "adapters", "why"),
    [
        ([], [], "--model NAME=PATH is needed"),
        (["smol"], [], "expected NAME=PATH"),
        (["smol="], [], "expected NAME=PATH"),
        (["s/m=x.gguf"], [], "a name is"),
        (["smol=nowhere.gguf"], [], "there is no"),
        (["smol=empty"], [], "neither a GGUF"),
        (["a=x.gguf", "a=x.gguf"], [], "twice"),
        (["a=x.gguf", "b=x.gguf"], ["y=x.gguf"], "write BASE:y=PATH"),
        (["a=x.gguf"], ["b:y=x.gguf"], "no --model is called 'b'"),
        (["a=x.gguf"], ["a:y=x.gguf", "y=x.gguf"], "twice"),
        (["a=x.onnx"], [], "does not say what it is for: give its folder, with config.json"),
    ],
)
def test_wrong_use_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str], adapters: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.gguf", "x.onnx"):
        Path(name).touch()
    Path("empty").mkdir()
    with pytest.raises(WrongUse, match=why) as refused:
        read_plan(models, adapters)
    assert "--model" in str(refused.value) or "--adapter" in str(refused.value)


def test_a_model_has_one_projector(tmp_path: Path) -> None:
    weights = tmp_path / "x.gguf"
    weights.touch()
    with pytest.raises(WrongUse, match="--projector: a name is given twice"):
        read_plan([f"a={weights}"], [], [f"a={weights}", f"a={weights}"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_other_machines_cannot_be_served(host: str) -> None:
    with pytest.raises(NotLoopback, match="--host"):
        listen(Door(host, 0))


def test_a_taken_port_is_known_at_once() -> None:
    with (
        listen(Door("localhost", 0)) as taken,
        pytest.raises(CannotListen, match=str(taken.getsockname()[1])),
    ):
        listen(Door("127.0.0.1", taken.getsockname()[1]))
