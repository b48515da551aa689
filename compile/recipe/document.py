"""YAML documents that people write: read into a section, or refused with file, line and nearest key.

Owns the mapping from pydantic's complaints to what a person can act on. Refuses unknown keys, duplicate
keys and values out of range with ``BadRecipe``. Knows no recipe in particular.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from compile.errors import BadRecipe

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A YAML mapping, and where its keys stand."""

    path: Path
    values: dict[str, Any]
    node: yaml.Node

    def into(self, model: type[Model]) -> Model:
        """The document as ``model``. Raises ``BadRecipe``, a line per problem."""
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise BadRecipe("\n".join(self._explain(model, one) for one in error.errors())) from error

    def wrong_key(self, location: Iterable[Any], known: Iterable[str]) -> BadRecipe:
        """The error for a key at ``location`` that is none of ``known``."""
        place = list(location)
        near = difflib.get_close_matches(str(place[-1]), list(known), n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return BadRecipe(f"{self._at(place)}: unknown key {_dotted(place)!r}{hint}")

    def wrong_value(self, location: Iterable[Any], reason: str) -> BadRecipe:
        """The error for a value at ``location``."""
        place = list(location)
        return BadRecipe(f"{self._at(place)}: {_dotted(place)}: {reason}")

    def _explain(self, model: type[BaseModel], problem: Any) -> str:
        place = [part for part in problem["loc"] if part != "[key]"]
        # A union adds the name of the member that was tried; the file has no such key.
        place = [part for at, part in enumerate(place) if at == 0 or self._has(place[:at], part)] + (
            [place[-1]] if place and not self._has(place[:-1], place[-1]) and len(place) > 1 else []
        )
        if problem["type"] == "extra_forbidden":
            return str(self.wrong_key(place, _keys_at(model, place[:-1])))
        if problem["type"] == "literal_error" and isinstance(problem["input"], str):
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = difflib.get_close_matches(problem["input"], known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return str(self.wrong_value(place, f"{problem['input']!r} is none of {', '.join(known)}{hint}"))
        if problem["type"] == "missing":
            return f"{self._at(place)}: {_dotted(place)} is missing"
        return str(self.wrong_value(place, problem["msg"].removeprefix("Value error, ")))

    def _has(self, before: list[Any], part: Any) -> bool:
        node: yaml.Node | None = self.node
        for step in (*before, part):
            node = _child(node, step)
            if node is None:
                return False
        return True

    def _at(self, location: list[Any]) -> str:
        """File and line of the innermost part of ``location`` that the file has."""
        line, node = 1, self.node
        for part in location:
            if isinstance(node, yaml.MappingNode):
                key = next((key for key, _ in node.value if key.value == str(part)), None)
                line = key.start_mark.line + 1 if key is not None else line
            below = _child(node, part)
            if below is None:
                break
            node = below
            if isinstance(part, int):
                line = node.start_mark.line + 1
        return f"{self.path}: line {line}"


def read_document(path: Path) -> Document:
    """Parse a file. Raises ``BadRecipe`` for what is no mapping of distinct keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadRecipe(f"{path}: not valid YAML: {error}") from error
    if node is None or not isinstance(values, dict):
        raise BadRecipe(f"{path}: line 1: a recipe is a mapping of sections")
    _refuse_duplicates(path, node)
    return Document(path, values, node)


def _refuse_duplicates(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise BadRecipe(f"{path}: line {key.start_mark.line + 1}: the key {key.value!r} stands twice")
            seen.add(key.value)
            _refuse_duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(path, item)


def _child(node: yaml.Node | None, part: Any) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        below: yaml.Node = node.value[part]
        return below
    return None


def _dotted(location: Iterable[Any]) -> str:
    return ".".join(str(part) for part in location) or "recipe"


def _keys_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """The valid keys of the section at ``location``; all that a union of sections takes."""
    sections = [model]
    for part in location:
        below: list[type[BaseModel]] = []
        for section in sections:
            if isinstance(part, int) or part not in section.model_fields:
                below.append(section)  # an item of a list, or a key that the person chose
            else:
                below += _sections_in(section.model_fields[part].annotation)
        sections = below
    return [name for section in sections for name in section.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation mentions: of an option, a list, a mapping, a union."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in _sections_in(argument)]
