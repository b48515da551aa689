"""The API's description (OpenAPI 3.1), from the models that read the requests.

Bodies are read by ``models.openai`` and not by FastAPI, whose errors are not OpenAI's; a route therefore
says with ``takes`` what it reads.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

Json = dict[str, Any]

_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_ERRORS: Json = {
    "4XX": {"description": "the caller can mend it", "content": {"application/json": {"schema": _ERROR}}},
    "5XX": {"description": "this device cannot now", "content": {"application/json": {"schema": _ERROR}}},
}


def takes(*bodies: type[BaseModel], stream: bool = False, form: Json | None = None) -> Json:
    """For ``openapi_extra``: the JSON body is one of ``bodies``; ``form``: or a form of that schema.

    ``stream``: the answer may be server-sent events.
    """
    schemas = [_inlined(body.model_json_schema()) for body in bodies]
    content: Json = {}
    if schemas:
        content["application/json"] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    answer: Json = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "the answer", "content": answer}},
    }


def describe(app: FastAPI, models: list[str]) -> Json:
    """The whole document; every operation answers errors in OpenAI's form. ``models``: names to try."""
    document = get_openapi(title=app.title, version="1", routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's: it reads nothing here
            operation["responses"].update(_ERRORS)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                named = content["schema"].get("properties", {}).get("model")
                if named is not None and models:
                    named["examples"] = models
    document.get("components", {}).pop("schemas", None)
    return document


def _inlined(schema: Json) -> Json:
    """A schema without ``$defs``: a part of a document cannot have any. Ours contain none of themselves."""
    definitions = schema.get("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "$ref" in value:
                return walk(definitions[value["$ref"].rpartition("/")[2]])
            return {key: walk(item) for key, item in value.items() if key != "$defs"}
        return [walk(item) for item in value] if isinstance(value, list) else value

    inlined: Json = walk(schema)
    return inlined
