"""Weights in blocks of 4 or 8 bits (MatMulNBits): activations stay in float, or in INT8 by the block.

Owns the three ways to choose the numbers: round to nearest (RTN), k-quant, and HQQ. Look-up tables go to
INT8 by row, as in ``compile.onnx.quantize``; with 4 bits that shows in the ledger. Refuses nodes to keep that
do not exist, and methods that an installed onnxruntime lacks.
"""

import contextlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compile.errors import ToolFailed
from compile.onnx.files import check_names, ledger, open_model, write_model
from compile.onnx.quantize import quiet, shrink_tables
from models.manifest import Fallback

Method = Literal["rtn", "k-quant", "hqq"]


@dataclass(frozen=True)
class BlockSettings:
    """``bits`` per weight, one scale per ``block`` of a column.

    ``accuracy_level`` 4: activations are quantized to INT8 by the block, which is faster on most processors;
    0: they stay in float.
    """

    bits: Literal[4, 8] = 4
    block: Literal[16, 32, 64, 128, 256] = 32
    method: Method = "rtn"
    accuracy_level: Literal[0, 4] = 4
    tables: Literal[4, 8] = 8


def quantize_blocks(
    prepared: Path, target: Path, settings: BlockSettings, keep: Collection[str] = ()
) -> tuple[Fallback, ...]:
    """Write ``target``; nodes in ``keep`` stay in float. Returns the ledger."""
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as library
    except ModuleNotFoundError as error:
        raise ToolFailed(f"{error.name} is missing: pip install 'outpost[compile]'") from error

    check_names(prepared, keep)
    model = open_model(prepared)
    unfold_gemms(model)
    if settings.tables == 8:
        shrink_tables(model, keep)
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quantizer = library.MatMulNBitsQuantizer(
            model,
            bits=settings.bits,
            block_size=settings.block,
            accuracy_level=settings.accuracy_level,
            nodes_to_exclude=list(keep),
            algo_config=_config(library, settings),
        )
        quantizer.process()
    made = quantizer.model.model if hasattr(quantizer.model, "model") else quantizer.model
    _set_accuracy(made, settings.accuracy_level)
    write_model(made, target)
    return ledger(target, f"INT{settings.bits}")


def unfold_gemms(model: Any) -> int:
    """``Gemm`` with constant weights as ``MatMul`` and ``Add``, all that the block quantizers know; how many.

    The new ``MatMul`` has the old name.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    replaced: set[str] = set()
    made = 0
    for node in graph.node:
        facts = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        plain = facts.get("alpha", 1.0) == facts.get("beta", 1.0) == 1.0 and not facts.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in tensors or not plain:
            nodes.append(node)
            continue
        weight = node.input[1]
        if facts.get("transB", 0):
            turned = f"{weight}/turned"
            if turned not in tensors:
                tensors[turned] = numpy_helper.from_array(
                    numpy_helper.to_array(tensors[weight]).T.copy(), turned
                )
                graph.initializer.append(tensors[turned])
            replaced.add(weight)
            weight = turned
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}/product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if biased:
            added = [product, node.input[2]]
            nodes.append(helper.make_node("Add", added, [node.output[0]], name=f"{node.name}_bias"))
        made += 1
    used = {name for node in nodes for name in node.input}
    gone = replaced - used
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return made


def _config(library: Any, settings: BlockSettings) -> Any:
    if settings.method == "k-quant":
        if settings.bits != 4 or not hasattr(library, "KQuantWeightOnlyQuantConfig"):
            raise ToolFailed("k-quant is a 4-bit method, and onnxruntime from 1.22 on has it")
        return library.KQuantWeightOnlyQuantConfig()
    if settings.method == "hqq":
        return library.HQQWeightOnlyQuantConfig(block_size=settings.block, bits=settings.bits)
    operators = ("MatMul", "Gather") if settings.tables == 4 else ("MatMul",)
    return library.DefaultWeightOnlyQuantConfig(
        block_size=settings.block,
        is_symmetric=settings.bits == 8,
        accuracy_level=settings.accuracy_level,
        bits=settings.bits,
        op_types_to_quantize=operators,
    )


def _set_accuracy(model: Any, level: int) -> None:
    """HQQ and k-quant leave it out, and the runtime then takes its own default."""
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and not any(one.name == "accuracy_level" for one in node.attribute):
            node.attribute.append(helper.make_attribute("accuracy_level", level))
