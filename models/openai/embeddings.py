"""``/v1/embeddings``: the request, read strictly, and the answer. Pure.

Reference: OpenAI's API reference, "Create embeddings". Token ids are refused: they mean nothing without the
caller's tokenizer. So is ``dimensions``: a vector that is cut is not what was measured.
"""

import base64
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr, WithJsonSchema

from models.openai.errors import bad_request, unsupported
from models.openai.reading import read_body

MAX_INPUTS = 2048
"""Texts in one request; OpenAI's limit."""

_TEXT = {"type": "string", "minLength": 1}
TEXTS: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": _TEXT}]
}
"""What ``read_texts`` takes, as JSON Schema."""


def read_texts(value: Any) -> Any:
    """``input``: a text or a list of texts, none of them empty. Raises ``ApiError`` (400)."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise bad_request("'input' must be a string or a list of strings.", "input", "invalid_type")
    if any(isinstance(text, int | list) for text in texts):
        raise unsupported("input", "'input' must be text; token ids are not supported.")
    if len(texts) > MAX_INPUTS:
        raise bad_request(f"'input' has {len(texts)} texts; at most {MAX_INPUTS}.", "input", "invalid_value")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise bad_request(f"'input[{index}]' must be a string.", "input", "invalid_type")
        if not text:
            raise bad_request(f"'input[{index}]' is empty.", "input", "invalid_value")
    return tuple(texts)


class EmbeddingRequest(BaseModel):
    """Texts to be embedded. ``user`` names the person that the call is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr = Field(min_length=1, max_length=200)
    input: Annotated[tuple[str, ...], BeforeValidator(read_texts), WithJsonSchema(TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    user: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        return read_body(cls, data, {"dimensions": ()})


def embeddings_json(model: str, rows: Sequence[bytes], encoding: str, tokens: int) -> dict[str, Any]:
    """The answer. ``rows``: float32, little-endian."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(row, encoding)}
            for index, row in enumerate(rows)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _written(row: bytes, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row).decode("ascii")
    numbers = array("f")
    numbers.frombytes(row)
    return numbers.tolist()
