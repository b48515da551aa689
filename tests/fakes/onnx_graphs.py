"""Small ONNX graphs made with the onnx library: a text embedder, classifiers, an anomaly model."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "pump", "leaks", "is", "fine", "hot", "good", "bad")


def write_graph(path: Path, nodes, inputs, outputs, weights, **options) -> Path:
    """Save a checked model of operator set 17."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, **options)
    return path


def text_inputs(*names: str):
    return [(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]


def write_embedder(path: Path, width: int = 8, seed: int = 0, **options) -> Path:
    """Token states that are rows of a table: float32 [batch, sequence, width]."""
    table = np.random.default_rng(seed).normal(size=(len(WORDS), width)).astype(np.float32)
    return write_graph(
        path,
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        text_inputs("input_ids", "attention_mask"),
        [("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", width])],
        {"table": table},
        **options,
    )


def write_text_classifier(path: Path, labels: int = 2, **options) -> Path:
    """Logits: the sum over the tokens that the mask leaves of rows of a table. ``bad`` speaks for class 1."""
    table = np.zeros((len(WORDS), labels), dtype=np.float32)
    table[WORDS.index("bad"), 1] = table[WORDS.index("good"), 0] = 3.0
    table[WORDS.index("[PAD]")] = 100.0  # a mask that is not heeded shows
    return write_graph(
        path,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["rows", "wide"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
        ],
        text_inputs("input_ids", "attention_mask"),
        [("logits", TensorProto.FLOAT, ["batch", labels])],
        {"table": table, "last": np.array([2]), "middle": np.array([1])},
        **options,
    )


def write_image_classifier(path: Path, size: int = 8) -> Path:
    """Three classes: the mean of red, green and blue, times ten."""
    return write_graph(
        path,
        [
            helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Mul", ["flat", "ten"], ["logits"]),
        ],
        [("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])],
        [("logits", TensorProto.FLOAT, ["batch", 3])],
        {"ten": np.float32(10)},
    )


def write_anomaly(path: Path, size: int = 8, scale: int = 2) -> Path:
    """Heat is the darkness of each patch of ``scale`` pixels a side; the score is the greatest."""
    small = size // scale
    return write_graph(
        path,
        [
            helper.make_node("Sub", ["one", "pixel_values"], ["dark"]),
            helper.make_node("ReduceMean", ["dark"], ["grey"], axes=[1], keepdims=1),
            helper.make_node(
                "AveragePool", ["grey"], ["heat"], kernel_shape=[scale, scale], strides=[scale, scale]
            ),
            helper.make_node("Squeeze", ["heat", "channel"], ["heat_map"]),
            helper.make_node("ReduceMax", ["heat_map"], ["score"], axes=[1, 2], keepdims=0),
        ],
        [("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])],
        [
            ("score", TensorProto.FLOAT, ["batch"]),
            ("heat_map", TensorProto.FLOAT, ["batch", small, small]),
        ],
        {"one": np.float32(1), "channel": np.array([1])},
    )


def write_tokenizer(path: Path, *, fixed_padding: bool = False) -> Path:
    """A word tokenizer that puts [CLS] and [SEP] around; ``fixed_padding`` as many published ones have."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(WORDS[:4]))
    if fixed_padding:
        tokenizer.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
        tokenizer.enable_truncation(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path
