"""Engines of TensorRT: their keys, the provider's options, and the folders that they are kept in. No GPU."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.digest import Digest
from models.engines.engine_cache import SEAL_FILE, engine_folder, is_sealed
from models.errors import EngineError, ModelsError, UnsafeFile
from models.tensorrt_key import EngineIdentity, engine_key, engine_name, timing_name
from models.tensorrt_recipe import TensorRtMachine, identity_of, provider_options, read_recipe

MACHINE = TensorRtMachine("onnxruntime 1.31.1", "10.3.0.30", 87, "540.4.0", 8_000_000_000)
WEIGHTS = {"model.onnx.data": Digest.of(b"weights")}
RECIPE = {
    "schema": 1,
    "state": "to-be-built-on-device",
    "onnx": {"path": "model.onnx", "sha256": Digest.of(b"graph")},
    "weights": WEIGHTS,
    "plans": [
        {"line": "10.x", "tensorrt_major": 10, "network_flags": ["STRONGLY_TYPED"], "builder_flags": []},
        {"line": "11.x", "tensorrt_major": 11, "network_flags": [], "builder_flags": []},
    ],
    "profiles": [{"ids": [[1, 16], [2, 64], [8, 256]], "mask": [[1, 16], [2, 64], [8, 256]]}],
}
IDENTITY = identity_of(read_recipe(json.dumps(RECIPE).encode()), MACHINE, Digest.of(b"graph"), WEIGHTS)


def changed(**changes) -> bytes:
    return json.dumps(RECIPE | changes).encode()


def test_the_key_is_what_it_was() -> None:
    """Golden: a key that moves makes every device build its engines again."""
    assert engine_key(IDENTITY) == "sha256:f00190c78fa11d075f7ff6e7dd295a11c2f2580faf4f99c998382f53f115a65a"
    assert engine_name(IDENTITY) == f"trt10.3.0.30-sm87-{engine_key(IDENTITY).hex}"


SHAPES = st.tuples(*[st.tuples(st.integers(1, 3))] * 3)
IDENTITIES = st.builds(
    EngineIdentity,
    onnx=st.sampled_from([Digest.of(b"one"), Digest.of(b"other")]),
    weights=st.dictionaries(st.sampled_from("ab"), st.sampled_from([Digest.of(b"w"), Digest.of(b"v")])),
    runtime=st.sampled_from(["1", "11"]),
    tensorrt=st.sampled_from(["10.3.0", "10.3.0.1", "1.0.3"]),
    sm=st.sampled_from([87, 89]),
    driver=st.sampled_from(["1", "11"]),
    flags=st.frozensets(st.sampled_from(["FP16", "INT8", "FP16INT8"])),
    profiles=st.lists(st.dictionaries(st.sampled_from("ab"), SHAPES), max_size=2),
)


@given(IDENTITIES, IDENTITIES)
def test_two_engines_never_share_a_folder(one: EngineIdentity, other: EngineIdentity) -> None:
    assert (engine_name(one) == engine_name(other)) == (one == other)


@given(
    IDENTITIES,
    st.sampled_from([field.name for field in fields(EngineIdentity)]),
)
def test_everything_an_engine_depends_on_moves_its_folder(one: EngineIdentity, what: str) -> None:
    others = {
        "onnx": Digest.of(b"third"),
        "weights": {"c": Digest.of(b"w")},
        "runtime": "2",
        "tensorrt": "11.0.0",
        "sm": 90,
        "driver": "2",
        "flags": frozenset({"BF16"}),
        "profiles": [{"c": ((1,), (1,), (1,))}],
    }
    assert engine_name(replace(one, **{what: others[what]})) != engine_name(one)


def test_what_cannot_be_is_no_identity() -> None:
    for wrong in ({"tensorrt": "ten"}, {"sm": 8}, {"driver": ""}, {"runtime": ""}):
        with pytest.raises(ModelsError):
            replace(IDENTITY, **wrong)


def test_the_provider_is_told_what_the_recipe_says(tmp_path: Path) -> None:
    assert provider_options(IDENTITY, tmp_path) == {
        "device_id": "0",
        "trt_fp16_enable": "False",
        "trt_int8_enable": "False",
        "trt_profile_min_shapes": "ids:1x16,mask:1x16",
        "trt_profile_opt_shapes": "ids:2x64,mask:2x64",
        "trt_profile_max_shapes": "ids:8x256,mask:8x256",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
    }
    lowered = provider_options(replace(IDENTITY, flags=frozenset({"FP16", "INT8"})), tmp_path)
    assert lowered["trt_fp16_enable"] == lowered["trt_int8_enable"] == "True"
    newest = replace(IDENTITY, tensorrt="11.4.1", flags=frozenset())
    assert provider_options(newest, tmp_path)["trt_fp16_enable"] == "False"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flags": frozenset({"BF16"})}, "no option for BF16"),
        ({"flags": frozenset()}, "asks for neither"),
        ({"flags": frozenset({"STRONGLY_TYPED", "FP16"})}, "asks for FP16, STRONGLY_TYPED"),
        ({"tensorrt": "11.4.1", "flags": frozenset({"FP16"})}, "asks for FP16"),
    ],
)
def test_what_the_provider_would_build_otherwise_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        provider_options(replace(IDENTITY, **changes), Path("engines"))


def test_a_recipe_is_for_its_graph_and_its_lines_of_tensorrt() -> None:
    recipe = read_recipe(json.dumps(RECIPE).encode())
    assert (recipe.sizes(0), recipe.sizes(1)) == ((1, 8), (16, 256))
    with pytest.raises(EngineError, match=r"TensorRT 10\.x, 11\.x; here is TensorRT 9\.1\.0"):
        identity_of(recipe, replace(MACHINE, tensorrt="9.1.0"), Digest.of(b"graph"), WEIGHTS)
    more = WEIGHTS | {"more": Digest.of(b"")}
    for onnx, weights in ((b"other", WEIGHTS), (b"graph", {}), (b"graph", more)):
        with pytest.raises(UnsafeFile, match="not the graph"):
            identity_of(recipe, MACHINE, Digest.of(onnx), weights)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        changed(schema=2),
        changed(onnx={"path": "../model.onnx", "sha256": Digest.of(b"graph")}),
        changed(weights={"model.onnx.data": "none"}),
        changed(profiles=[]),
        changed(profiles=RECIPE["profiles"] * 2),
        changed(profiles=[{"ids": [[1], [2]]}]),
        changed(profiles=[{"ids": [[2], [1], [3]]}]),
        changed(profiles=[{"ids": [[1], [1, 2], [3]]}]),
        changed(profiles=[{"ids:1x1,mask": [[1], [2], [3]]}]),
        b" " * (5 << 20),
    ],
)
def test_a_recipe_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(UnsafeFile, match=r"tensorrt\.json"):
        read_recipe(data)


class Builds:
    """Stands for the runtime: reads an engine where there is one, else writes what it would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0

    def load(self, identity: EngineIdentity = IDENTITY) -> bytes:
        with engine_folder(self.root, identity) as folder:
            engine = folder / "graph_sm87.engine"
            if not engine.exists():
                self.made += 1
                self.timings = [path.read_bytes() for path in folder.glob("*.timing")]
                engine.write_bytes(f"of {identity.onnx}".encode())
                (folder / "cache_sm87.timing").write_bytes(b"timings %d" % self.made)
            return engine.read_bytes()


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(tmp_path / "engines")


def test_an_engine_is_built_once_and_its_key_alone_reads_it(builds: Builds) -> None:
    other = replace(IDENTITY, onnx=Digest.of(b"other"))
    assert builds.load() == builds.load() != builds.load(other)
    assert builds.made == 2
    folders = {path.name for path in builds.root.iterdir() if path.name.startswith("trt")}
    assert folders == {engine_name(IDENTITY), engine_name(other)}
    kept = {path.name for path in (builds.root / engine_name(IDENTITY)).iterdir()}
    assert kept == {SEAL_FILE, "graph_sm87.engine"}
    assert builds.root.stat().st_mode & 0o777 == 0o700


def _other_engine(folder: Path, root: Path) -> None:
    (folder / "graph_sm87.engine").write_bytes(b"another model's")


def _more(folder: Path, root: Path) -> None:
    (folder / "graph_1_sm87.engine").write_bytes(b"")


def _unsealed(folder: Path, root: Path) -> None:
    (folder / SEAL_FILE).unlink()


def _foreign(folder: Path, root: Path) -> None:
    other = replace(IDENTITY, driver="580.1")
    Builds(root).load(other)
    (folder / "graph_sm87.engine").unlink()
    (folder / SEAL_FILE).unlink()
    folder.rmdir()
    (root / engine_name(other)).rename(folder)


@pytest.mark.parametrize("spoil", [_other_engine, _more, _unsealed, _foreign])
def test_a_folder_that_is_not_what_was_sealed_is_built_again(builds: Builds, spoil) -> None:
    right = builds.load()
    folder = builds.root / engine_name(IDENTITY)
    spoil(folder, builds.root)
    assert not is_sealed(folder, IDENTITY)
    assert builds.load() == right and builds.made == 2
    assert is_sealed(folder, IDENTITY)


def test_a_build_that_fails_leaves_no_engine(builds: Builds) -> None:
    with pytest.raises(EngineError, match="took no part"), engine_folder(builds.root, IDENTITY) as folder:
        (folder / "graph.profile").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt), engine_folder(builds.root, IDENTITY) as folder:
        (folder / "half.engine").write_bytes(b"half")
        raise KeyboardInterrupt
    killed = builds.root / f".{engine_name(IDENTITY)}.building"
    killed.mkdir()
    (killed / "half.engine").write_bytes(b"half")
    builds.load()
    assert not killed.exists() and builds.made == 1
    assert not (builds.root / engine_name(IDENTITY) / "half.engine").exists()


def test_an_engine_that_fails_is_not_tried_again(builds: Builds) -> None:
    builds.load()
    with pytest.raises(EngineError), engine_folder(builds.root, IDENTITY):
        raise EngineError("cannot be deserialized")
    builds.load()
    assert builds.made == 2


def test_an_engine_that_the_runtime_wrote_over_is_not_kept(builds: Builds) -> None:
    builds.load()
    with engine_folder(builds.root, IDENTITY) as folder:
        (folder / "graph_sm87.engine").write_bytes(b"built anew")
    assert not (builds.root / engine_name(IDENTITY)).exists()


def test_timings_are_shared_by_what_they_hold_for(builds: Builds) -> None:
    builds.load()
    builds.load(replace(IDENTITY, onnx=Digest.of(b"other"), runtime="onnxruntime 2"))
    assert builds.timings == [b"timings 1"]
    for elsewhere in ({"driver": "580.1"}, {"sm": 89}, {"tensorrt": "10.4.0"}):
        builds.load(replace(IDENTITY, **elsewhere))
        assert builds.timings == []
    with pytest.raises(EngineError), engine_folder(builds.root, replace(IDENTITY, onnx=Digest.of(b"third"))):
        raise EngineError("could not create timing cache")
    assert not (builds.root / timing_name(IDENTITY)).exists()


def test_who_comes_second_waits_for_the_engine(builds: Builds) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: builds.load(), range(4)))
    assert builds.made == 1 and len(set(found)) == 1
