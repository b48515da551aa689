"""``/v1/rerank``: documents ordered by how well they answer a query. Pure.

Request and answer are those that Jina's and Cohere's clients know. A model that is made to rerank reads query
and document together (a cross-encoder); an embedder can stand in, and then the order is that of the cosines
of vectors that were made apart. The answer says which (``scoring``).
"""

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall, floats
from models.manifest import Task
from models.openai.errors import bad_request
from models.openai.reading import read_body

MAX_DOCUMENTS = 1000

Json = dict[str, Any]


def _read_documents(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise bad_request("'documents' must be a list of texts.", "documents", "invalid_type")
    if len(value) > MAX_DOCUMENTS:
        raise bad_request(
            f"'documents' has {len(value)} texts; at most {MAX_DOCUMENTS}.", "documents", "invalid_value"
        )
    return tuple(_read_document(index, one) for index, one in enumerate(value))


def _read_document(index: int, value: Any) -> str:
    text = value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value
    if not isinstance(text, str):
        raise bad_request(
            f"'documents[{index}]' must be a text, or an object with nothing but one as 'text'.",
            f"documents[{index}]",
            "invalid_type",
        )
    if not text:
        raise bad_request(f"'documents[{index}]' is empty.", f"documents[{index}]", "invalid_value")
    return text


class RerankRequest(BaseModel):
    """``top_n``: how many results are wanted; None for all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr = Field(min_length=1, max_length=200)
    query: StrictStr = Field(min_length=1)
    documents: Annotated[tuple[str, ...], BeforeValidator(_read_documents)]
    top_n: StrictInt | None = Field(default=None, ge=1)
    return_documents: StrictBool = True
    user: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        return read_body(cls, data, {})

    def call(self, task: Task) -> EncoderCall:
        """What a model of that task is asked."""
        if task == "embed":
            return EncoderCall((self.query, *self.documents))
        return EncoderCall(self.documents, query=self.query)


def relevances(task: Task, answer: EncoderAnswer) -> list[float]:
    """Of each document: the cross-encoder's, in (0, 1), or the cosine, in [-1, 1], of a model that embeds."""
    rows = [floats(row) for row in answer.rows]
    if task != "embed":
        return [row[0] for row in rows]
    query, *documents = rows
    return [_cosine(query, document) for document in documents]


def ranked_json(asked: RerankRequest, task: Task, answer: EncoderAnswer) -> Json:
    """The answer: most relevant first, the first of equals first."""
    scores = relevances(task, answer)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    results: list[Json] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if asked.return_documents:
        for result in results:
            result["document"] = {"text": asked.documents[result["index"]]}
    return {
        "object": "list",
        "model": asked.model,
        "results": results,
        "scoring": "cosine" if task == "embed" else "cross-encoder",
        "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
    }


def _cosine(left: list[float], right: list[float]) -> float:
    norm = math.hypot(*left) * math.hypot(*right)
    return sum(map(float.__mul__, left, right)) / norm if norm else 0.0
