"""``/v1/classify`` and ``/v1/inspect``: requests read strictly, answers written. Pure.

Both routes are ours. Texts come as ``input``; pictures as ``image``: base64 or a data URL in JSON, or files
of a form. Options are honoured or refused by name, as in ``models.openai.reading``.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, StrictStr, model_validator

from edge_agent.engines.encoder_calls import EncoderAnswer, HeatMaps, floats
from edge_agent.rest.multipart import Part
from models.openai.embeddings import read_texts
from models.openai.errors import bad_request
from models.openai.media import from_base64
from models.openai.reading import Frozen, read_body, validated

MAX_IMAGES = 64
"""Pictures in one request."""

Json = dict[str, Any]


def read_images(value: Any) -> Any:
    """One picture or a list of them, as bytes or base64. Raises ``ApiError`` (400)."""
    images = [value] if isinstance(value, str | bytes) else value
    if not isinstance(images, list) or not images:
        raise bad_request("'image' must be base64, or a list of such.", "image", "invalid_type")
    if len(images) > MAX_IMAGES:
        raise bad_request(f"{len(images)} pictures; at most {MAX_IMAGES}.", "image", "invalid_value")
    return tuple(_read_image(image) for image in images)


def _read_image(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise bad_request("'image' must be base64.", "image", "invalid_type")
    data = from_base64(value)
    if data is None:
        raise bad_request("'image' is neither base64 nor a data URL of it.", "image", "invalid_value")
    return data


def read_heat_map(value: Any) -> HeatMaps:
    """Whether a heat map is wanted, and how. Raises ``ApiError`` (400)."""
    if isinstance(value, bool):
        return value
    if value == "overlay":
        return "overlay"
    code = "invalid_value" if isinstance(value, str) else "invalid_type"
    raise bad_request("'heat_map' must be true, false or \"overlay\".", "heat_map", code)


def fields_of_form(parts: Sequence[Part], file: str, texts: Sequence[str]) -> tuple[Json, list[bytes]]:
    """The texts of a form, and the files called ``file``. Raises ``ApiError`` (400) for anything else."""
    given: Json = {}
    for part in parts:
        if part.name == file:
            continue
        if part.name not in texts:
            raise bad_request(f"Unknown parameter: '{part.name:.100}'.", part.name, "unknown_parameter")
        if part.name in given:
            raise bad_request(f"'{part.name}' is given twice.", part.name, "invalid_value")
        given[part.name] = part.data.decode("utf-8", "replace")
    if not given.get("model"):
        raise bad_request("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    return given, [part.data for part in parts if part.name == file]


def form_of_pictures(**options: Json) -> Json:
    """The JSON Schema of a form with pictures for a model, and with ``options``."""
    properties = {
        "model": {"type": "string"},
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **options,
        "user": {"type": "string"},
    }
    return {"type": "object", "properties": properties, "required": ["model", "image"]}


class ClassifyRequest(Frozen):
    """Texts or pictures for a classifier."""

    model: StrictStr = Field(min_length=1, max_length=200)
    input: Annotated[tuple[str, ...], BeforeValidator(read_texts)] = ()
    image: Annotated[tuple[bytes, ...], BeforeValidator(read_images)] = ()
    user: StrictStr | None = Field(default=None, max_length=512)

    @model_validator(mode="after")
    def _has_one_kind_of_input(self) -> Self:
        if bool(self.input) == bool(self.image):
            raise bad_request("Send either 'input' (text) or 'image'.", "input", "missing_required_parameter")
        return self

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a JSON body. Raises ``ApiError`` (400) that names the parameter."""
        return read_body(cls, data, {"heat_map": (False,)})

    @classmethod
    def of_form(cls, parts: Sequence[Part]) -> Self:
        """Read a form. Raises ``ApiError`` (400) that names the parameter."""
        given, images = fields_of_form(parts, "image", ("model", "user"))
        return validated(cls, {**given, "image": images})


class InspectRequest(Frozen):
    """Pictures for a model that inspects. ``heat_map``: it shows where it looked, in grey or, as ``overlay``,
    in red over the picture.
    """

    model: StrictStr = Field(min_length=1, max_length=200)
    image: Annotated[tuple[bytes, ...], BeforeValidator(read_images)]
    heat_map: Annotated[HeatMaps, BeforeValidator(read_heat_map)] = False
    user: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a JSON body. Raises ``ApiError`` (400) that names the parameter."""
        return read_body(cls, data, {})

    @classmethod
    def of_form(cls, parts: Sequence[Part]) -> Self:
        """Read a form. Raises ``ApiError`` (400) that names the parameter."""
        given, images = fields_of_form(parts, "image", ("model", "heat_map", "user"))
        if "heat_map" in given:
            given["heat_map"] = {"true": True, "false": False}.get(given["heat_map"], given["heat_map"])
        return validated(cls, {**given, "image": images})


def classes_json(model: str, labels: Sequence[str], answer: EncoderAnswer) -> Json:
    """The answer of a classifier: for each input all labels with their probabilities, likeliest first."""
    data = []
    for index, row in enumerate(answer.rows):
        ordered = sorted(zip(labels, floats(row), strict=True), key=lambda pair: -pair[1])
        scores = [{"label": label, "score": score} for label, score in ordered]
        data.append({"index": index, **scores[0], "labels": scores})
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return listed(model, data) | {"usage": usage}


def inspections_json(model: str, answer: EncoderAnswer, *, heat_maps: bool = True) -> Json:
    """The answer of an inspection, without its pictures unless ``heat_maps``."""
    data = []
    for index, one in enumerate(answer.inspections):
        found: Json = {
            "index": index,
            "score": one.score,
            "verdict": "defect" if one.is_defect else "good",
            "threshold": one.threshold,
            "region": list(one.region),
        }
        if one.heat_map is not None and heat_maps:
            found["heat_map"] = base64.b64encode(one.heat_map).decode("ascii")
        data.append(found)
    return listed(model, data)


def listed(model: str, data: list[Json]) -> Json:
    """What a model found of each input."""
    return {"object": "list", "model": model, "data": data}
