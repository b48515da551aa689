"""Releases of several files on a device: real signatures, TUF, transfer and engines; no network."""

import shutil
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from onnx_releases import EMBED, INSPECT, write_onnx_release
from pictures import plain
from readers import write_ocr_release, write_speech_release
from ship_world import NOW, Device, World

from edge_agent.engines.encoder_calls import EncoderCall, floats
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.start import start_engine
from edge_agent.updates.figures import Footprint, weigher
from models.engines.base import EncoderFacts
from models.manifest import MANIFEST_FILE, Engine
from models.store import read_release
from sync.protocol import ProbationTerms
from sync.repository import Published, sign_release


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "hub")


def publish(world: World, name: str, version: str, needs: Engine, **changes) -> Published:
    folder = world.folder / "releases" / f"{name}-{version}"
    write_onnx_release(folder, needs, version=version, **changes)
    sign_release(folder, world.offline / "targets.json", [world.offline / "targets-1.pem"], NOW)
    return world.repository.publish(folder, world.offline / "targets.json", NOW)


class RealDevice(Device):
    """A device whose engines are processes."""

    async def _start(self, files: EngineFiles):
        self.loads += 1
        return await start_engine(files, EngineSettings(threads=1))

    def _weigh(self, files: EngineFiles, precision: str, facts: EncoderFacts, pid: int | None) -> Footprint:
        return weigher(1)(files, precision, facts, pid)


@asynccontextmanager
async def device_of(world: World, home: Path):
    device = RealDevice(world, home)
    try:
        await device.activator.resume()
        yield device
    finally:
        await device.close()


async def vector(device: Device, model: str) -> list[float]:
    with device.catalog.lease(model) as served:
        return floats((await served.encoder("embed").ask(EncoderCall(("pump is hot",)))).rows[0])


async def test_an_embedder_is_activated_replaced_and_rolled_back(world: World, tmp_path: Path) -> None:
    first = publish(world, "minilm", "1.0.0", EMBED)
    second = publish(world, "minilm", "2.0.0", EMBED, seed=1)
    wrong = publish(world, "minilm", "3.0.0", EMBED, seed=2, expected='{"vector":[1,2]}')
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(first))
        await device.activator.step()
        assert device.where() == {"minilm 1.0.0": "committed"}
        figures = device.activator.report()[0].figures
        assert figures.format == "onnx" and figures.weight_bytes > 0 and figures.threads == 1
        assert figures.items_per_second > 0 and figures.decode_per_second is None
        assert figures.load_seconds > 0 and figures.peak_ram_bytes > 20_000_000  # of the engine's own process
        one = await vector(device, "minilm")
        await device.activator.desire(world.desire(second, terms=ProbationTerms(min_requests=6)))
        await device.activator.step()
        two = await vector(device, "minilm")
        assert device.where() == {"minilm 1.0.0": "committed", "minilm 2.0.0": "active"} and one != two
        await device.activator.roll_back("model/minilm")
        await device.activator.step()
        assert await vector(device, "minilm") == one
        await device.activator.desire(world.desire(wrong))
        await device.activator.step()
        assert "probe 1 of 1: similarity 0.00" in device.why("minilm 3.0.0")
        assert await vector(device, "minilm") == one
    laid_out = sorted((tmp_path / "d" / "store" / "releases").iterdir())
    assert [folder.name for folder in laid_out] == [first.release.hex]  # the others are gone, links and all
    assert (laid_out[0] / "model.onnx.data").stat().st_nlink == 2
    async with device_of(world, tmp_path / "d") as device:
        device.fetcher.down = True
        await device.activator.step()
        assert await vector(device, "minilm") == one


async def test_an_inspection_is_probed_with_its_own_picture(world: World, tmp_path: Path) -> None:
    release = publish(world, "welds", "1.0.0", INSPECT)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(release))
        await device.activator.step()
        with device.catalog.lease("welds") as served:
            answer = await served.encoder("inspect").ask(EncoderCall(images=(plain("black"), plain("white"))))
            assert [one.is_defect for one in answer.inspections] == [True, False]
            assert (served.release, served.task) == (release.release, "inspect")


async def test_a_layout_that_was_cut_short_is_made_again(world: World, tmp_path: Path) -> None:
    release = publish(world, "minilm", "1.0.0", EMBED)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(release))
        await device.activator.step()
        manifest, _ = read_release(world.folder / "releases" / "minilm-1.0.0")
        folder = device.store.lay_out(release.release, manifest.files)
        assert sorted(path.name for path in folder.iterdir()) == [
            "model.onnx",
            "model.onnx.data",
            "tokenizer.json",
        ]
    shutil.rmtree(folder)
    (folder.parent / ".unfinished-1").mkdir()
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.step()
        assert len(await vector(device, "minilm")) == 8
        assert [path.name for path in folder.parent.iterdir()] == [release.release.hex]


@pytest.mark.parametrize("write", [write_ocr_release, write_speech_release])
async def test_what_reads_and_hears_is_measured_too(
    world: World, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    folder = write(world.folder / "releases" / "reader")
    sign_release(folder, world.offline / "targets.json", [world.offline / "targets-1.pem"], NOW)
    release = world.repository.publish(folder, world.offline / "targets.json", NOW)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(release))
        await device.activator.step()
        (report,) = device.activator.report()
    assert report.state == "committed", report.reason
    assert report.figures.items_per_second > 0 and report.figures.weight_bytes > 1_000_000
    assert report.figures.peak_ram_bytes > report.figures.weight_bytes


async def test_a_recipe_of_tensorrt_is_not_fetched_where_no_engine_can_be_built(
    world: World, tmp_path: Path
) -> None:
    folder = world.folder / "releases" / "minilm-1.0.0"
    manifest = write_onnx_release(folder, EMBED).model_copy(update={"format": "tensorrt-recipe"})
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    sign_release(folder, world.offline / "targets.json", [world.offline / "targets-1.pem"], NOW)
    recipe = world.repository.publish(folder, world.offline / "targets.json", NOW)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(recipe))
        await device.activator.step()
        assert device.why("minilm 1.0.0").startswith(
            "UnfitRelease: no TensorRT engine can be built here: this ONNX Runtime has no TensorRT: install "
        )
        assert device.source.reads == [] and device.loads == 0
