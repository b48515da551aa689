"""ONNX models to INT8: dynamic, and static with calibration, of any architecture.

Owns the settings and their meaning, look-up tables by row, the ranges that calibration finds, and the ledger
that every quantization returns. Refuses an empty calibration set, and nodes to keep that do not exist. Feeds
come from the caller: this module knows neither text nor pictures.

On x86-64 without VNNI (AVX2), ``vpmaddubsw`` adds two products of 8 bits in 16 and saturates: with
``reduce_range`` weights use 7 bits, and nothing saturates. It costs little where VNNI is there and is the
default; profiles that all have VNNI, or arm64, can do without.
"""

import json
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.errors import BadData, ToolFailed
from compile.onnx.files import (
    TABLE,
    check_names,
    external_name,
    files_of,
    is_large,
    ledger,
    open_model,
    weighted,
    write_model,
)
from compile.steps import Report
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto

    Feeds = Mapping[str, npt.NDArray[Any]]

Calibration = Literal["min-max", "entropy", "percentile"]


@dataclass(frozen=True)
class DynamicSettings:
    """Weights ahead of time, one scale per output channel; activations while running, one scale per tensor.

    ``op_types``: which operators are quantized. Look-up tables always get one scale per row.
    """

    reduce_range: bool = True
    op_types: tuple[str, ...] = ("MatMul", "Gemm")


@dataclass(frozen=True)
class StaticSettings:
    """Weights and activations ahead of time, as QuantizeLinear/DequantizeLinear pairs.

    ``percentile`` belongs to that calibration. ``float_outputs``: operators whose output is not quantized
    again; for transformers this is what makes static quantization bearable (MiniLM: mean cosine 0.987
    instead of 0.924). ``symmetric``: signed symmetric activations, as TensorRT wants them.
    """

    calibration: Calibration = "min-max"
    percentile: float = 99.999
    reduce_range: bool = True
    symmetric: bool = False
    op_types: tuple[str, ...] = ("MatMul", "Gemm", "Conv")
    float_outputs: tuple[str, ...] = ("MatMul",)


def prepare(source: Path, target: Path, symbolic: bool = False) -> None:
    """Infer shapes and fold constants, so that the quantizers find what they look for.

    Node names stay, as far as their nodes do. ``symbolic`` also infers symbolic shapes, which some graphs
    with computed shapes need, and which gives up on others (MiniLM's); it holds twice the memory. Raises
    ``ToolFailed``.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    apart = len(files_of(source)) > 1  # what came in several files leaves in several
    with quiet():
        try:
            quant_pre_process(
                str(source),
                str(target),
                skip_symbolic_shape=not symbolic,
                auto_merge=True,
                save_as_external_data=apart,
                all_tensors_to_one_file=True,
                external_data_location=external_name(target),
            )
        except Exception as error:  # the library raises bare Exception here
            raise ToolFailed(f"{source.name} cannot be prepared: {error}") from error


def quantize_dynamic(
    prepared: Path, target: Path, settings: DynamicSettings, keep: Collection[str] = ()
) -> tuple[Fallback, ...]:
    """Write ``target``; nodes in ``keep`` stay in float. Returns the ledger."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as run

    check_names(prepared, keep)
    with _tabled(prepared, keep) as tabled, quiet():
        run(
            str(tabled),
            str(target),
            op_types_to_quantize=list(settings.op_types),
            per_channel=True,
            reduce_range=settings.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
            use_external_data_format=is_large(prepared),
        )
    return ledger(target, "INT8")


def calibrate(
    prepared: Path,
    ranges: Path,
    feeds: Iterable["Feeds"],
    settings: StaticSettings,
    scratch: Path,
    report: Report,
    total: int | None = None,
) -> int:
    """Write the range of every activation to ``ranges``; the number of feeds. ``total`` is for progress.

    Feeds are taken one at a time, each may have shapes of its own, and none is held. Raises ``BadData`` when
    there is none.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    method, options = {
        "min-max": (CalibrationMethod.MinMax, {}),
        "entropy": (CalibrationMethod.Entropy, {}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": settings.percentile}),
    }[settings.calibration]
    count = 0
    with quiet():
        calibrator = create_calibrator(
            prepared,
            list(settings.op_types),
            augmented_model_path=str(scratch / "augmented.onnx"),
            calibrate_method=method,
            use_external_data_format=is_large(prepared),
            extra_options=options,
        )
        for feed in feeds:
            calibrator.collect_data(_One(feed))
            count += 1
            report(count / (total or count + 1), f"calibrating, {count} of {total or 'some'} feeds")
        if count == 0:
            raise BadData("the calibration set is empty: static quantization needs inputs to see")
        save_tensors_data(calibrator.compute_data(), ranges)
    (scratch / "augmented.onnx").unlink(missing_ok=True)
    return count


def quantize_static(
    prepared: Path, ranges: Path, target: Path, settings: StaticSettings, keep: Collection[str] = ()
) -> tuple[Fallback, ...]:
    """Write ``target`` with the ranges that ``calibrate`` found; nodes in ``keep`` stay in float.

    Returns the ledger, in which products of two activations count as well as weights.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_static as run

    check_names(prepared, keep)
    activation = QuantType.QInt8 if settings.symmetric else QuantType.QUInt8
    with _tabled(prepared, keep) as tabled, quiet():
        run(
            str(tabled),
            str(target),
            None,
            per_channel=True,
            reduce_range=settings.reduce_range,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(settings.op_types),
            nodes_to_exclude=list(keep),
            calibrate_method=_method_of(ranges),
            calibration_cache_path=ranges,
            use_external_data_format=is_large(prepared),
            extra_options={
                "ActivationSymmetric": settings.symmetric,
                "OpTypesToExcludeOutputQuantization": list(settings.float_outputs),
            },
        )
    return ledger(target, "INT8", activations="MatMul" in settings.op_types)


def shrink_tables(model: "ModelProto", keep: Collection[str] = ()) -> int:
    """Look-up tables (embeddings) to INT8 with one scale per row, in plain ONNX operators; how many.

    onnxruntime's quantizer gives a whole table one scale, which costs MiniLM more than all other weights
    together. A row here is ``Cast(Gather(int8, ids)) * Gather(scales, ids)``.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    made = 0
    nodes = list(graph.node)
    wanted = {
        one.node: one.tensor
        for one in weighted(model)
        if one.op == TABLE and one.node not in keep and len(one.shape) == 2
    }
    for at, node in reversed(list(enumerate(nodes))):
        name = wanted.get(node.name)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if name is None or node.input[0] != name or axis != 0 or readers[name] != 1:
            continue
        table = numpy_helper.to_array(tensors[name])
        quantized, scales = rows_to_int8(table.astype(np.float32))
        graph.initializer.remove(tensors[name])
        graph.initializer.append(numpy_helper.from_array(quantized, f"{name}/int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
        axes = f"{name}/axis"
        graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), axes))
        # With a slash: names of the quantizers' own (x_scale, x_quantized) cannot clash with these.
        ids, out, stem = node.input[1], node.output[0], node.name or name
        rows, floats, scale, column = (f"{out}/{part}" for part in ("rows", "floats", "scale", "column"))
        nodes[at : at + 1] = [
            helper.make_node("Gather", [f"{name}/int8", ids], [rows], name=f"{stem}_rows"),
            helper.make_node("Cast", [rows], [floats], name=f"{stem}_cast", to=1),
            helper.make_node("Gather", [f"{name}/scale", ids], [scale], name=f"{stem}_scales"),
            helper.make_node("Unsqueeze", [scale, axes], [column], name=f"{stem}_column"),
            helper.make_node("Mul", [floats, column], [out], name=f"{stem}_scaled"),
        ]
        made += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def rows_to_int8(
    table: "npt.NDArray[np.float32]",
) -> tuple["npt.NDArray[np.int8]", "npt.NDArray[np.float32]"]:
    """Symmetric, per row. Law: no value moves by more than half its row's scale."""
    import numpy as np

    scales = np.maximum(np.abs(table).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
    quantized = np.clip(np.rint(table / scales[:, None]), -127, 127).astype(np.int8)
    return quantized, scales


@contextmanager
def _tabled(prepared: Path, keep: Collection[str]) -> Iterator[Path]:
    """A copy of the model whose tables are in INT8 already."""
    with tempfile.TemporaryDirectory(dir=prepared.parent) as folder:
        model = open_model(prepared)
        if shrink_tables(model, keep):
            path = Path(folder) / prepared.name
            write_model(model, path)
            del model
            yield path
        else:
            del model
            yield prepared


def _method_of(ranges: Path) -> Any:
    """The calibration method that a file of ranges says it is of."""
    from onnxruntime.quantization.calibrate import load_tensors_data

    try:
        return load_tensors_data(ranges).calibration_method
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ToolFailed(f"{ranges.name} holds no ranges: {error}") from error


class _One:
    """One feed, as the calibrator reads them."""

    def __init__(self, feed: "Feeds") -> None:
        self._feed: dict[str, Any] | None = dict(feed)

    def get_next(self) -> dict[str, Any] | None:
        """The feed, then None."""
        feed, self._feed = self._feed, None
        return feed


@contextmanager
def quiet() -> Iterator[None]:
    """The quantizers log at length through the root logger; what matters is in the ledger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
