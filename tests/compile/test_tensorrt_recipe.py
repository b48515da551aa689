"""TensorRT recipes: what is checked before a GPU is needed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compile.errors import BadRecipe, UnsupportedBase
from compile.onnx import tensorrt
from compile.onnx.tensorrt import (
    TO_BE_BUILT,
    UNTESTED,
    check_graph,
    check_profiles,
    devices_of,
    line_of,
    profile_for,
    qdq_report,
    widen,
    write_recipe,
)
from compile.package import files_below, package_release
from models.digest import Digest
from models.engines.onnx_session import recipe_beside
from models.errors import UnsafeFile
from models.manifest import Kind, Manifest
from models.onnx import read_model

PROFILE = {"x": ((1, 1, 8), (4, 16, 8), (8, 64, 8))}


def mlp(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """x [batch, length, 8] -> two MatMuls with a Relu between."""
    numbers = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = [
        numpy_helper.from_array(numbers.normal(0, 1, (8, 8)).astype(dtype), name) for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    shape = ["batch", "length", 8]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Rows(CalibrationDataReader):
    def __init__(self) -> None:
        numbers = np.random.default_rng(1)
        self._rows = iter([{"x": numbers.normal(0, 1, (2, 4, 8)).astype(np.float32)} for _ in range(8)])

    def get_next(self):
        return next(self._rows, None)


def quantized(folder: Path, symmetric: bool = True, signed: bool = True) -> Path:
    onnx.save(mlp(), folder / "float.onnx")
    kind = QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_static(
        folder / "float.onnx",
        folder / "qdq.onnx",
        Rows(),
        quant_format=QuantFormat.QDQ,
        activation_type=kind,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
    )
    return folder / "qdq.onnx"


def test_qdq_of_onnxruntime_is_recognised_and_taken(tmp_path: Path) -> None:
    graph = onnx.load(quantized(tmp_path))
    report = qdq_report(graph)
    assert report.quantized == {"MatMul": 2}
    assert report.in_float == {}
    assert check_graph(graph) == "strong"
    assert qdq_report(mlp()).in_float == {"MatMul": 2}


@pytest.mark.parametrize(
    ("symmetric", "signed", "says"), [(False, True, "symmetric"), (True, False, "unsigned")]
)
def test_int8_that_tensorrt_reads_otherwise_is_refused(
    tmp_path: Path, symmetric: bool, signed: bool, says: str
) -> None:
    with pytest.raises(UnsupportedBase, match=says):
        qdq_report(onnx.load(quantized(tmp_path, symmetric, signed)))


def test_types_decide_the_lines() -> None:
    assert check_graph(mlp(TensorProto.FLOAT)) == "weak"
    assert check_graph(mlp(TensorProto.FLOAT16)) == "strong"
    with pytest.raises(UnsupportedBase, match="double"):
        check_graph(mlp(TensorProto.DOUBLE))
    mixed = mlp(TensorProto.FLOAT)
    half = mlp(TensorProto.FLOAT16).graph.initializer[0]
    mixed.graph.initializer[0].CopyFrom(half)
    with pytest.raises(UnsupportedBase, match="types"):
        check_graph(mixed)
    foreign = mlp()
    foreign.graph.node[1].domain, foreign.graph.node[1].op_type = "com.microsoft", "Gelu"
    with pytest.raises(UnsupportedBase, match=r"com\.microsoft:Gelu"):
        check_graph(foreign)
    dynamic = mlp()
    dynamic.graph.node[1].op_type = "DynamicQuantizeLinear"
    with pytest.raises(UnsupportedBase, match="statically"):
        check_graph(dynamic)


def test_jetpacks() -> None:
    assert line_of("6.2").major == line_of("7.0").major == line_of("7.2.1").major == 10
    assert line_of("7.2.2").major == 11
    assert not line_of("7.2.2").weak
    for unknown in ("5.1", "8.0", "9", "latest", "6.x"):
        with pytest.raises(BadRecipe):
            line_of(unknown)


def test_a_recipe_says_how_to_build_on_every_line_and_that_nothing_was_built(tmp_path: Path) -> None:
    recipe = write_recipe(
        quantized(tmp_path), ["6.2", "7.2.2"], [PROFILE], tmp_path / "out", "jetson-agx-orin"
    )
    assert recipe["state"] == TO_BE_BUILT
    assert recipe["tested"] == UNTESTED
    assert json.loads((tmp_path / "out" / "tensorrt.json").read_text()) == recipe
    by_jetpack = {plan["jetpack"]: plan for plan in recipe["plans"]}
    assert by_jetpack["6.2"]["network_flags"] == ["STRONGLY_TYPED"]
    assert by_jetpack["7.2.2"]["network_flags"] == by_jetpack["7.2.2"]["builder_flags"] == []
    read_model(tmp_path / "out" / "model.onnx")
    template = Manifest(
        kind=Kind.MODEL,
        name="m",
        version="1.0.0",
        format="tensorrt-recipe",
        precision="INT8",
        files=(),
        license="x",
    )
    manifest = package_release(tmp_path / "release", template, files_below(tmp_path / "out"))
    assert {file.path for file in manifest.files} == {"model.onnx", "tensorrt.json"}


def test_float32_is_for_ten_only(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "float.onnx")
    plans = write_recipe(tmp_path / "float.onnx", ["6.2"], [PROFILE], tmp_path / "six")["plans"]
    assert plans[0]["builder_flags"] == ["FP16"]
    anywhere = write_recipe(tmp_path / "float.onnx", [], [PROFILE], tmp_path / "any")["plans"]
    assert [plan["tensorrt_major"] for plan in anywhere] == [10]
    with pytest.raises(BadRecipe, match="float32"):
        write_recipe(tmp_path / "float.onnx", ["7.2.2"], [PROFILE], tmp_path / "seven")
    assert not (tmp_path / "seven").exists()
    with pytest.raises(BadRecipe, match="not for jetson-orin-nano-8g"):
        write_recipe(tmp_path / "float.onnx", ["7.2.2"], [PROFILE], tmp_path / "n", "jetson-orin-nano-8g")


def test_float32_is_computed_as_it_was_measured_where_that_is_asked_for(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "float.onnx")
    recipe = write_recipe(
        tmp_path / "float.onnx", ["6.2", "7.2.2"], [PROFILE], tmp_path / "out", as_typed=True
    )
    assert [plan["network_flags"] for plan in recipe["plans"]] == [["STRONGLY_TYPED"], []]
    assert not any(plan["builder_flags"] for plan in recipe["plans"]) and recipe["widened"] == {}


def convolution() -> onnx.ModelProto:
    """A table of rows in INT8, looked up by ids, and a convolution with a bias: what widening is for."""
    numbers = np.random.default_rng(0)
    constants = {
        "table": numbers.integers(-127, 127, (16, 3)).astype(np.int8),
        "w": numbers.normal(0, 1, (4, 3, 1)).astype(np.float32),
        "bias": numbers.integers(-9000, 9000, 4).astype(np.int32),
        "scale": numbers.uniform(1e-4, 1e-3, 4).astype(np.float32),
        "zero": np.zeros(4, np.int32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows"),
        helper.make_node("Cast", ["rows"], ["floats"], name="floats", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], name="turned", perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["bias", "scale", "zero"], ["b"], name="bias_dq", axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "length"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_constants_that_tensorrt_does_not_read_become_floats_of_the_same_values(tmp_path: Path) -> None:
    model = convolution()
    with pytest.raises(UnsupportedBase, match="bias_dq: a constant in INT32"):
        qdq_report(model)
    with pytest.raises(UnsupportedBase, match="INT8 that Gather reads"):
        check_graph(model)
    ids = np.arange(10, dtype=np.int64)[None]
    before = InferenceSession(model.SerializeToString()).run(None, {"ids": ids})[0]
    assert widen(model) == {"bias": "INT32", "table": "INT8"}
    assert check_graph(model) == "weak" and not qdq_report(model).quantized
    after = InferenceSession(model.SerializeToString()).run(None, {"ids": ids})[0]
    assert np.array_equal(before, after)
    assert widen(model) == {}
    onnx.save(convolution(), tmp_path / "model.onnx")
    profile = profile_for(read_model(tmp_path / "model.onnx").inputs, (1, 2, 4), (1, 8, 16))
    assert profile == {"ids": ((1, 1), (2, 8), (4, 16))}
    recipe = write_recipe(tmp_path / "model.onnx", [], [profile], tmp_path / "out", as_typed=True)
    assert recipe["widened"] == {"bias": "INT32", "table": "INT8"}
    assert recipe["onnx"]["sha256"] == Digest.of((tmp_path / "out" / "model.onnx").read_bytes())
    with pytest.raises(UnsupportedBase, match="open dimension 1"):
        profile_for(read_model(tmp_path / "model.onnx").inputs, (1, 2, 4))


def test_the_devices_of_jetpacks() -> None:
    assert devices_of(["6.2"]) == ("jetson-agx-orin", "jetson-orin-nano-8g")
    assert devices_of(["7.2.2"]) == ("jetson-agx-orin", "jetson-thor")
    assert {"sm_75", "sm_90"} <= set(devices_of([])) and "jetson-thor" not in devices_of([])


def test_profiles_that_do_not_fit_are_refused() -> None:
    inputs = [
        tensorrt.Value("ids", "int64", ("batch", "length")),
        tensorrt.Value("mask", "int64", ("batch", "length")),
        tensorrt.Value("image", "float32", ("batch", 3, 8, 8)),
    ]
    text = ((1, 1), (2, 16), (4, 64))
    image = ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    good = {"ids": text, "mask": text, "image": image}
    check_profiles([good, good], inputs)
    wrong = [
        {"ids": text, "mask": text},
        good | {"other": text},
        good | {"ids": ((1,), (2,), (4,))},
        good | {"ids": ((2, 1), (1, 16), (4, 64))},
        good | {"ids": ((0, 1), (2, 16), (4, 64))},
        good | {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 9, 8))},
        good | {"mask": ((1, 1), (2, 16), (8, 64))},
    ]
    for profile in wrong:
        with pytest.raises(BadRecipe):
            check_profiles([profile], inputs)
    with pytest.raises(BadRecipe):
        check_profiles([], inputs)


def test_the_device_reads_what_was_written(tmp_path: Path) -> None:
    write_recipe(quantized(tmp_path), ["6.2"], [PROFILE], tmp_path / "out")
    recipe = recipe_beside(tmp_path / "out" / "model.onnx")
    assert recipe.plan_for("10.3.0.30").network_flags == ("STRONGLY_TYPED",)
    assert recipe.profiles == (PROFILE,) and recipe.sizes(1) == (1, 64)
    with pytest.raises(UnsafeFile, match=r"tensorrt\.json"):
        write_recipe(quantized(tmp_path), ["6.2"], [PROFILE, PROFILE], tmp_path / "two")
