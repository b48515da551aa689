"""How sensitive a request is, and how its declaration is read: one rule for device and hub. Pure."""

from enum import StrEnum

HEADER = "x-outpost-data-class"
"""The HTTP header by which a caller declares it."""


class DataClass(StrEnum):
    """How sensitive a request is, mildest first. What is ``restricted`` stays on its device."""

    PUBLIC = "public"
    INTERNAL = "internal"
    RESTRICTED = "restricted"


def classify(declared: str | None, default: DataClass) -> DataClass:
    """The strictest of what the caller says and what is configured; an unknown word is ``restricted``.

    ``declared`` is the header as it came, None without one. Case and white space around it say nothing.
    """
    if declared is None:
        return default
    try:
        said = DataClass(declared.strip().lower())
    except ValueError:
        return DataClass.RESTRICTED
    order = list(DataClass)
    return max(said, default, key=order.index)
