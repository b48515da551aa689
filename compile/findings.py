"""What a line says when all is measured. The report reads this and nothing else. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compile.evaluate.judge import Measured, VariantResult
from models.forecast import Forecast


@dataclass(frozen=True)
class Answer:
    """What one variant made of one input. ``right`` is None where nothing tells."""

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Case:
    """One test input: what was expected, and what everyone answered, by variant (``reference`` too)."""

    input: str
    expected: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Flips:
    """On how many of the inputs ``compared`` not all answers are the same."""

    changed: int
    compared: int

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Flips":
        """Of all cases there are: a report shows some, and those that change first."""
        changed = sum(len({answer.text for answer in case.answers.values()}) > 1 for case in cases)
        return cls(changed, len(cases))


@dataclass(frozen=True)
class Picture:
    """A picture for the report, as PNG bytes."""

    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Compared:
    """What stands beside the variants without being one: a baseline, or the model before training."""

    name: str
    metrics: Mapping[str, Measured]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that a report says.

    ``headline`` is the metric of the plots. ``reference_note`` says what the reference is. ``rows`` counts
    the data by split. ``curve`` is the learning curve, an entry per epoch, empty when nothing was trained.
    ``nearest`` are the recipe changes under which the nearest variant would pass, None when one does.
    ``cases`` may be cut to what is worth showing; ``flips`` count all of them. ``devices``: what the releases
    will be on devices, by release.
    """

    title: str
    command: str
    device: str
    headline: str
    reference_note: str
    rows: Mapping[str, int]
    reference: VariantResult
    variants: tuple[VariantResult, ...]
    chosen: str | None
    nearest: Mapping[str, Any] | None
    lineage: Mapping[str, Any] = field(repr=False)
    curve: Sequence[Mapping[str, Any]] = ()
    beside: tuple[Compared, ...] = ()
    cases: tuple[Case, ...] = field(default=(), repr=False)
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    flips: Flips = Flips(0, 0)
    devices: Mapping[str, tuple[Forecast, ...]] = field(default_factory=dict)

    @property
    def nearest_recipe(self) -> str:
        """``nearest`` as it would stand in the recipe, under the variant that it would let pass."""
        import yaml

        if self.nearest is None:
            return "none: no budget can loosen what failed"
        changes = {name: value for name, value in self.nearest.items() if name != "variant"}
        pasted = yaml.safe_dump(changes, sort_keys=False, default_flow_style=None)
        return f"{self.nearest['variant']}, with\n{pasted.rstrip()}"
