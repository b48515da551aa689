"""EfficientNet-lite written as ONNX computes what the package's own module computes."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compile.errors import UnsupportedBase
from compile.onnx import vision_export as export
from models.errors import UnsafeFile

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    script = runpy.run_path(str(ROOT / "examples" / "vision" / "convert_lite0.py"))
    return script["convert"](tmp_path_factory.mktemp("lite0"))


def answer(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {export.INPUT: images})[0]


def theirs(name, state, size, images):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name(name, image_size=list(size))
    module.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 66)])
def test_lite0_gives_the_logits_of_the_package(lite0, height, width):
    config, weights = export.read_config(lite0), export.read_weights(lite0)
    images = np.random.default_rng(1).normal(size=(2, 3, height, width)).astype(np.float32)
    expected = theirs("efficientnet-lite0", weights, (height, width), images)
    got = answer(export.classifier(weights, config, width, height), images)
    assert np.abs(got - expected).max() < 1e-4


def test_a_wider_and_deeper_member_has_the_same_architecture_as_in_the_package(lite0):
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite2", image_size=[64, 64])
    chance = np.random.default_rng(2)
    weights = {
        name: (value.numpy() + 0.1 * chance.random(value.shape)).astype(np.float32)
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    config = export.read_config(lite0).model_copy(update={"architecture": "efficientnet-lite2"})
    images = chance.normal(size=(1, 3, 64, 64)).astype(np.float32)
    expected = theirs("efficientnet-lite2", weights, (64, 64), images)
    got = answer(export.classifier(weights, config, 64, 64), images)
    assert np.abs(got - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_the_same_weights_give_the_same_bytes(lite0):
    config, weights = export.read_config(lite0), export.read_weights(lite0)
    made = [export.features(weights, config, 64, 64).SerializeToString() for _ in range(2)]
    assert made[0] == made[1]


def test_batch_norms_and_padding_are_in_the_convolutions(lite0):
    model = export.classifier(export.read_weights(lite0), export.read_config(lite0), 64, 64)
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


def test_weights_that_do_not_fit_are_refused_by_name(lite0):
    config, weights = export.read_config(lite0), export.read_weights(lite0)
    without = {name: value for name, value in weights.items() if name != "_blocks.3._bn1.bias"}
    with pytest.raises(UnsupportedBase, match=r"_blocks\.3\._bn1\.bias missing"):
        export.classifier(without, config, 64, 64)
    with pytest.raises(UnsupportedBase, match=r"_fc\.weight has shape \[1000, 1280\]"):
        export.classifier(weights, config.model_copy(update={"classes": 7}), 64, 64)


def test_folders_that_are_no_base_are_refused(lite0, tmp_path):
    with pytest.raises(UnsupportedBase, match=r"config\.json"):
        export.read_config(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "resnet50", "image_size": 224, "classes": 9})
    )
    with pytest.raises(UnsupportedBase, match="architecture"):
        export.read_config(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedBase, match=r"weights\.pth.*no \.pth"):
        export.read_weights(tmp_path)
    shutil.copy(lite0 / "model.safetensors", tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsafeFile):
        export.read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((2 << 30).to_bytes(8, "little") + b"{}")
    with pytest.raises(UnsafeFile, match=str(2 << 30)):
        export.read_weights(tmp_path)
