"""Recipes: the YAML file in which a person says what to build and what it must not cost.

Owns the schema, its defaults and its error messages (file, line, nearest key). Refuses unknown keys,
duplicate keys and values out of range with ``BadRecipe``. Knows nothing of how a step is carried out.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compile.errors import BadRecipe
from compile.recipe.sections import Budget
from models.manifest import Name, Version


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSource(_Section):
    """The base model: a GGUF file inside an installed package, or at a path beside the recipe."""

    name: Name
    version: Version
    license: str
    package: str | None = None
    file: str


class DataSource(_Section):
    """A JSONL data set; ``text`` is the input, ``answer`` the fields of the answer in their order."""

    path: str
    text: str = "ticket"
    language: str = "language"
    seed: int = 7
    near_duplicate: float = Field(default=0.7, gt=0, le=1)
    train_rows: int | None = Field(default=None, ge=16)


class Prompt(_Section):
    """What stands before the input. Short: every token of it is paid on every request."""

    system: str


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class FineTune(_Section):
    """LoRA. Layers below ``first_layer`` stay as they are, so what they compute is kept, not repeated."""

    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[LoraTarget, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    first_layer: int = Field(default=0, ge=0)
    epochs: int = Field(default=2, ge=1, le=100)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=6e-4, gt=0, lt=1)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    label_weight: float = Field(default=3.0, gt=0)
    seed: int = 0


class Variant(_Section):
    """One precision of the base."""

    name: Name
    type: Literal[
        "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"
    ]


class Evaluate(_Section):
    """How much to measure. The tokens of ``text`` are held out: no step trains on them."""

    text_package: str
    text_file: str
    text_tokens: int = Field(default=3000, ge=256)
    window: int = Field(default=512, ge=64, le=4096)
    test_rows: int | None = Field(default=None, ge=8)
    before_rows: int = Field(default=24, ge=4)
    max_tokens: int = Field(default=64, ge=8, le=512)
    speed_repeats: int = Field(default=5, ge=3)
    bootstrap: int = Field(default=2000, ge=200)


Metric = Literal[
    "perplexity_ratio",
    "kl_mean",
    "kl_p99",
    "top_token_agreement",
    "class_accuracy",
    "class_macro_f1",
    "severity_accuracy",
    "component_match",
    "exact_match",
    "valid_json",
    "answer_agreement",
    "adapter_effect",
    "fallback_tensors",
]


class Release(_Section):
    """The adapter that is shipped."""

    name: Name
    version: Version
    license: str = "Apache-2.0"
    probes: int = Field(default=5, ge=1, le=50)
    tolerance: float = Field(default=0.9, ge=0, le=1)


class Recipe(_Section):
    """One build."""

    schema_version: Literal[1] = 1
    base: BaseSource
    data: DataSource
    prompt: Prompt
    finetune: FineTune = FineTune()
    continues: str | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    evaluate: Evaluate
    budgets: dict[Metric, Budget]
    release: Release

    @model_validator(mode="after")
    def _names_differ(self) -> "Recipe":
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names) or "reference" in names:
            raise ValueError("variants need different names, and 'reference' is taken")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ``BadRecipe`` with file, line, key and the nearest valid key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadRecipe(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise BadRecipe(f"{path}: line 1: a recipe is a mapping of sections")
    _refuse_duplicates(path, node)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise BadRecipe("\n".join(_explain(path, node, problem) for problem in error.errors())) from error


def _refuse_duplicates(path: Path, node: yaml.Node | None) -> None:
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


def _explain(path: Path, node: yaml.Node | None, problem: Any) -> str:
    location = [part for part in problem["loc"] if part != "[key]"]
    line = _line(node, location)
    where = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{path}: line {line}: unknown key {where!r}{hint}"
    if problem["type"] == "literal_error" and location[:1] == ["budgets"] and len(location) == 2:
        near = difflib.get_close_matches(str(location[1]), Metric.__args__, n=1, cutoff=0.0)  # type: ignore[attr-defined]
        return f"{path}: line {line}: unknown key {where!r}; did you mean {near[0]!r}?"
    return f"{path}: line {line}: {where}: {problem['msg']}"


def _line(node: yaml.Node | None, location: list[Any]) -> int:
    """The line of the innermost part of ``location`` that the file has."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _keys_at(location: list[Any]) -> list[str]:
    """The valid keys of the section at ``location``."""
    section: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        if part == "budgets":
            section = Budget
        elif part == "variants":
            section = Variant
        elif part in section.model_fields:
            kind = section.model_fields[part].annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return list(section.model_fields)
