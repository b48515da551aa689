"""Sections that recipes of every task share: where files come from, budgets, variants, the release."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from compile.errors import BadRecipe
from models.manifest import Name, Version
from models.profiles import PROFILES


def _profile(value: str) -> str:
    if value not in PROFILES:
        raise ValueError(f"no device profile {value!r}; there are {', '.join(sorted(PROFILES))}")
    return value


ProfileName = Annotated[str, AfterValidator(_profile)]


class Section(BaseModel):
    """Frozen, and nothing but the keys that it names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Section):
    """A file or folder: beside the recipe, or inside an installed package.

    ``made_by``: the command that makes it, for whoever does not have it; no step's key holds it.
    """

    package: str | None = None
    file: str
    made_by: str | None = Field(default=None, exclude=True)

    def find(self, beside: Path, key: str) -> Path:
        """Where it lies. Raises ``BadRecipe`` that names ``key`` when it is not there."""
        if self.package is None:
            path = beside / self.file
        else:
            spec = importlib.util.find_spec(self.package) if self.package.isidentifier() else None
            if spec is None or not spec.submodule_search_locations:
                raise BadRecipe(f"{key}.package: the package {self.package!r} is not installed")
            path = Path(next(iter(spec.submodule_search_locations))) / self.file
        return there(path, f"{key}.file", self.made_by)


def there(path: Path, key: str, made_by: str | None) -> Path:
    """``path``, which ``key`` names. Raises ``BadRecipe`` when it is not there."""
    if not path.exists():
        hint = f"; make it first: {made_by}" if made_by else ""
        raise BadRecipe(f"{key}: {path} is not there{hint}")
    return path


class BaseSource(Source):
    """The base model."""

    name: Name
    version: Version
    license: str


class Budget(Section):
    """A bound on ``value - reference`` that holds at the pessimistic end of the 95 % interval.

    ``max_loss`` for what should be high, ``max_rise`` for what should be low, ``min_gain`` for what must
    be above its reference.
    """

    max_loss: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_rise: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    min_gain: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Budget":
        if sum(bound is not None for bound in (self.max_loss, self.max_rise, self.min_gain)) != 1:
            raise ValueError("a budget sets exactly one of max_loss, max_rise, min_gain")
        return self

    @property
    def bound(self) -> tuple[str, float, bool]:
        """Its name, the bound on the difference, and whether a rise (not a fall) is bad."""
        if self.max_rise is not None:
            return "max_rise", self.max_rise, True
        if self.min_gain is not None:
            return "min_gain", self.min_gain, False
        return "max_loss", -(self.max_loss or 0.0), False


LOWER_IS_BETTER = (
    "kl_mean", "kl_p99", "perplexity", "perplexity_ratio", "answer_kl", "answer_perplexity",
    "fallback_tensors", "size_ratio", "false_reject_rate", "flips", "label_flips", "verdict_flips",
    "word_error_rate", "character_error_rate",
)  # fmt: skip
"""Metrics that a variant is to keep low, whatever the task; all others are to be high."""
ONLY_GAIN = ("adapter_effect", "adapter_margin")
"""Metrics whose reference is what must be surpassed."""


def key_for(metric: str) -> str:
    """The key that a budget on ``metric`` must have; the other ones would let any loss pass."""
    if metric in ONLY_GAIN:
        return "min_gain"
    return "max_rise" if metric in LOWER_IS_BETTER else "max_loss"


class ReleaseSection(Section):
    """What is shipped, and how many known answers travel with it."""

    name: Name
    version: Version
    license: str = "Apache-2.0"
    profiles: tuple[ProfileName, ...] = ()
    probes: int = Field(default=5, ge=1, le=50)
    tolerance: float = Field(default=0.9, ge=0, le=1)


class RecipeBase(Section):
    """What a recipe of any task has. ``budgets`` are by metric, ``fixed_metrics`` what the task measures."""

    fixed_metrics: ClassVar[tuple[str, ...]] = ()

    schema_version: int = Field(default=1, ge=1, le=1)
    task: str
    budgets: dict[str, Budget]
    release: ReleaseSection

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that a budget can bound; a task with metrics of its own data adds them."""
        return self.fixed_metrics

    if TYPE_CHECKING:  # each kind of recipe has the fields, of its own types
        base: BaseSource
        variants: tuple[Any, ...]

    @property
    def variant_names(self) -> tuple[str, ...]:
        """The names under which variants are reported."""
        return tuple(variant.name for variant in self.variants)
