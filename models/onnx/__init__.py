"""ONNX files, read with every count, length and path checked before a native library sees them.

Owns the decision whether an ONNX file and the weights beside it may be loaded, and what the file says of
itself. Refuses, with ``UnsafeFile``: anything malformed or not in the schema, tensors whose bytes are not
there, weights outside the model's folder, operators of unknown domains and operators that load or run other
files. Weights are never read: the file is mapped, and they are skipped.

``wire`` reads protobuf within its bounds, by the fields that ``schema`` lists; ``tensors``, ``values``,
``operators`` and ``external`` each check one thing; ``model`` walks a whole file and makes its ``facts``.
"""

from models.onnx.facts import External, Initializer, OnnxModel, Value
from models.onnx.model import parse_model, read_model

__all__ = ["External", "Initializer", "OnnxModel", "Value", "parse_model", "read_model"]
