"""JSON Schemas put together: references, ``allOf``, and whether alternatives exclude each other. Pure.

Refuses, with ``UnsupportedRequest``, what cannot be said as one schema.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import UnsupportedRequest

_ANNOTATIONS = frozenset(
    (
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"),
        *("examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType"),
        # OpenAPI's: to JSON Schema they say nothing.
        *("example", "nullable", "discriminator", "externalDocs", "xml"),
    )
)
_KIND_OF = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    dict: "object",
    list: "array",
}


class Document:
    """A schema in which references are looked up."""

    def __init__(self, whole: Mapping[str, Any] | bool) -> None:
        self.whole = whole

    def target(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedRequest(f"{where}: only references inside the schema ('#/...') are followed")
        target: Any = self.whole
        for part in reference[1:].split("/")[1:]:
            key: Any = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                key = int(key)
            elif not isinstance(target, Mapping) or key not in target:
                raise UnsupportedRequest(f"{where}: {reference!r:.100} points at nothing")
            target = target[key]
        return target

    def all_of(self, schema: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """One schema for a schema and all that it refers to or lists in ``allOf``."""
        parts = schema.get("allOf", [])
        if not isinstance(parts, list):
            raise UnsupportedRequest(f"{where}: 'allOf' needs a list of schemas")
        own = {key: value for key, value in schema.items() if key not in ("allOf", "$ref")}
        if "$ref" in schema:
            parts = [{"$ref": schema["$ref"]}, *parts]
        whole: Mapping[str, Any] = own
        for part in parts:
            whole = self.both(whole, part, where)
        return whole

    def both(self, one: Mapping[str, Any], other: Any, where: str) -> Mapping[str, Any]:
        """A schema that only meets what meets both."""
        if other is True:
            return one
        if not isinstance(other, Mapping):
            raise UnsupportedRequest(f"{where}: a schema is an object, or true")
        if "$ref" in other or "allOf" in other:
            target = (
                self.target(other["$ref"], where) if set(other) == {"$ref"} else self.all_of(other, where)
            )
            return self.both(one, target, where)
        both = dict(one)
        for key, value in other.items():
            if says_nothing(key):
                continue
            both[key] = self._joined(key, both[key], value, where) if key in both else value
        _check_closed(one, other, where)
        return both

    def _joined(self, key: str, one: Any, other: Any, where: str) -> Any:
        """The value of a keyword that two schemas have."""
        if one == other and type(one) is type(other):
            return one
        try:
            if key == "properties":
                shared = {name: {"allOf": [one[name], other[name]]} for name in one if name in other}
                return {**one, **other, **shared}
            if key == "required":
                return [*one, *(name for name in other if name not in one)]
            if key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
                return max(one, other)
            if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
                return min(one, other)
            if key == "type":
                kinds = [kind for kind in as_list(one) if kind in as_list(other)]
                if not kinds and {*as_list(one), *as_list(other)} >= {"integer", "number"}:
                    kinds = ["integer"]
                return kinds[0] if len(kinds) == 1 else kinds
            if key == "items":
                return {"allOf": [one, other]}
            if key == "additionalProperties":
                return False if False in (one, other) else {"allOf": [one, other]}
        except (TypeError, KeyError) as error:
            raise UnsupportedRequest(f"{where}: {key!r} has no meaning here") from error
        raise UnsupportedRequest(f"{where}: two different {key!r} together cannot be enforced")

    def disjoint(self, listed: Sequence[Any], beside: Mapping[str, Any], where: str) -> bool:
        """Whether no value meets two of the schemas, as far as types, values and one property show it."""
        known = [self.both(beside, one, where) for one in listed]
        tags = [_required_values(one) for one in known]
        shared = set(tags[0]).intersection(*tags)
        return (
            _exclusive([_kinds(one) for one in known])
            or _exclusive([_constants(one) for one in known])
            or (
                all(_kinds(one) == {"object"} for one in known)
                and (
                    any(_exclusive([tag[name] for tag in tags]) for name in shared)
                    or all(_lacks(one, other) for one in known for other in known if one is not other)
                )
            )
        )


def says_nothing(key: str) -> bool:
    """Whether a keyword is for people, or another standard's."""
    return key in _ANNOTATIONS or key.startswith("x-")


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_closed(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """An object that takes no other properties takes none of another schema's either."""
    for closed, open_ in ((one, other), (other, one)):
        if closed.get("additionalProperties", True) is not True and "properties" in open_:
            strange = set(open_["properties"]) - set(closed.get("properties", {}))
            if strange:
                raise UnsupportedRequest(
                    f"{where}: {min(strange)!r:.60} meets 'additionalProperties' of another schema"
                )


def _kinds(schema: Mapping[str, Any]) -> set[Any] | None:
    """The types that a value of the schema may have, None for any."""
    if "const" in schema or "enum" in schema:
        values = _list_values(schema)
        whole = {"integer" for value in values if isinstance(value, float) and value.is_integer()}
        return {_KIND_OF[type(value)] for value in values} | whole
    kinds = set(as_list(schema["type"])) if "type" in schema else None
    return kinds | {"integer"} if kinds and "number" in kinds else kinds


def _list_values(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else as_list(schema["enum"])


def _constants(schema: Mapping[str, Any]) -> set[Any] | None:
    """The values that the schema takes, as JSON, None for any."""
    if "const" not in schema and "enum" not in schema:
        return None
    return {
        json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)
        for value in _list_values(schema)
    }


def _lacks(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one of two closed objects requires what the other does not take."""
    return any(
        closed.get("additionalProperties") is False
        and set(asks.get("required", ())) - set(closed.get("properties", ()))
        for asks, closed in ((one, other), (other, one))
    )


def _required_values(schema: Mapping[str, Any]) -> dict[str, set[Any] | None]:
    """The values of each required property with listed ones."""
    properties = schema.get("properties", {})
    return {
        name: _constants(properties[name])
        for name in schema.get("required", ())
        if isinstance(properties.get(name), Mapping) and _constants(properties[name]) is not None
    }


def _exclusive(sets: Sequence[set[Any] | None]) -> bool:
    """Whether no two of the sets share anything."""
    known = [one for one in sets if one is not None]
    return len(known) == len(sets) and sum(map(len, known)) == len(set().union(*known))
