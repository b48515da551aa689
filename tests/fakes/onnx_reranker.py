"""A tiny cross-encoder: how many of the text's words are ``good``, less those that are ``bad``."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from onnx_graphs import WORDS, text_inputs, write_graph, write_tokenizer


def write_reranker(folder: Path) -> Path:
    """A folder as optimum writes it. Only tokens of the second half of a pair are looked at."""
    table = np.zeros((len(WORDS), 1), dtype=np.float32)
    table[WORDS.index("good")], table[WORDS.index("bad")] = 1.0, -1.0
    write_graph(
        folder / "model.onnx",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Mul", ["attention_mask", "token_type_ids"], ["second"]),
            helper.make_node("Cast", ["second"], ["kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kept", "last"], ["wide"]),
            helper.make_node("Mul", ["rows", "wide"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "middle"], ["logits"], keepdims=0),
        ],
        text_inputs("input_ids", "attention_mask", "token_type_ids"),
        [("logits", TensorProto.FLOAT, ["batch", 1])],
        {"table": table, "last": np.array([2]), "middle": np.array([1])},
    )
    write_tokenizer(folder / "tokenizer.json")
    config = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "max_position_embeddings": 12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
