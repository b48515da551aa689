"""Numbers within bounds to GBNF. Pure.

Law: every text of the grammar is a JSON number within the bounds. Without a bound a number has at most
sixteen digits; within bounds it has no exponent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

Between = Callable[[int, int], list[str]]

LARGEST = 10**16 - 1
MAX_DECIMALS = 12
"""Decimals of a bound."""
_INT32 = (Decimal(-(2**31)), Decimal(2**31 - 1))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most, None for none; ``open_low`` and ``open_high``: the bound itself is outside."""

    low: Decimal | None = None
    high: Decimal | None = None
    open_low: bool = False
    open_high: bool = False

    def scaled(self, decimals: int) -> tuple[int, int]:
        """The least and the greatest number inside, in units of ``10 ** -decimals``."""
        unit = 10**decimals
        low, high = -LARGEST * unit, LARGEST * unit
        if self.low is not None:
            low = max(low, int((self.low * unit).to_integral_value(ROUND_CEILING)))
            low += self.open_low and low == self.low * unit
        if self.high is not None:
            high = min(high, int((self.high * unit).to_integral_value(ROUND_FLOOR)))
            high -= self.open_high and high == self.high * unit
        return low, high


def read_bounds(schema: Mapping[str, Any], kind: str) -> Bounds:
    """The bounds that a schema's keywords for numbers set. Raises ``ValueError`` for what they cannot say."""
    found: dict[str, Decimal] = {}
    for key, value in schema.items():
        if key == "format":
            if value not in ("int32", "int64", "float", "double"):
                raise ValueError(f"format {value!r:.60} of a number cannot be enforced")
        elif key == "multipleOf":
            if kind != "integer" or value != 1:
                raise ValueError("'multipleOf' cannot be enforced")
        elif isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
            raise ValueError(f"{key!r} is a number of at most 16 digits")
        else:
            found[key] = Decimal(str(value))
            if _decimals(found[key]) > MAX_DECIMALS:
                raise ValueError(f"{key!r} has more than {MAX_DECIMALS} decimals")
    if schema.get("format") == "int32":
        found["minimum"] = max(found.get("minimum", _INT32[0]), _INT32[0])
        found["maximum"] = min(found.get("maximum", _INT32[1]), _INT32[1])
    low, open_low = _tighter(found.get("minimum"), found.get("exclusiveMinimum"), 1)
    high, open_high = _tighter(found.get("maximum"), found.get("exclusiveMaximum"), -1)
    return Bounds(low, high, open_low, open_high)


def _tighter(bound: Decimal | None, outside: Decimal | None, sign: int) -> tuple[Decimal | None, bool]:
    if outside is not None and (bound is None or sign * outside >= sign * bound):
        return outside, True
    return bound, False


def integers(bounds: Bounds) -> str | None:
    """The whole numbers within ``bounds``; None when there are none."""
    return _signed(*bounds.scaled(0), _whole)


def numbers(bounds: Bounds) -> str | None:
    """Numbers within ``bounds``; None when there are none with as many decimals as the bounds have."""
    decimals = max(1, *(_decimals(bound) for bound in (bounds.low, bounds.high)))

    def between(low: int, high: int) -> list[str]:
        return _decimal(low, high, decimals)

    return _signed(*bounds.scaled(decimals), between)


def _decimals(bound: Decimal | None) -> int:
    exponent = 0 if bound is None else bound.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _signed(low: int, high: int, between: Between) -> str | None:
    ways = []
    if low < 0 and low <= high:
        ways += [f'"-" {way}' for way in between(max(1, -high), -low)]
    if high >= 0 and low <= high:
        ways += between(max(0, low), high)
    return f"({' | '.join(ways)})" if ways else None


def _whole(low: int, high: int) -> list[str]:
    """Ways to write the whole numbers from ``low`` to ``high``, not negative, without leading zeros."""
    ways = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        ways += _fixed(first, min(high, 10**digits - 1), digits)
    return ways


def _fixed(low: int, high: int, digits: int) -> list[str]:
    """Ways to write ``low`` to ``high`` in exactly ``digits`` digits, zeros before included."""
    if low > high:
        return []
    if digits == 0:
        return ['""']
    unit = 10 ** (digits - 1)
    ways = []
    head, last = low // unit, high // unit
    if head == last:
        return [_then(f"[{head}]", way) for way in _fixed(low % unit, high % unit, digits - 1)]
    if low % unit:
        ways += [_then(f"[{head}]", way) for way in _fixed(low % unit, unit - 1, digits - 1)]
        head += 1
    ends = high % unit != unit - 1
    if ends:
        ways += [_then(f"[{last}]", way) for way in _fixed(0, high % unit, digits - 1)]
        last -= 1
    if head <= last:
        ways.append(_then(f"[{head}-{last}]", f"[0-9]{{{digits - 1}}}" if digits > 1 else '""'))
    return ways


def _then(head: str, rest: str) -> str:
    return head if rest == '""' else f"{head} {rest}"


def _decimal(low: int, high: int, decimals: int) -> list[str]:
    """Ways to write numbers from ``low`` to ``high`` units, not negative.

    A whole part of which all fractions are inside takes any; those at the ends take the fractions inside.
    """
    unit = 10**decimals
    first, last = -(-low // unit), high // unit - 1
    ways = []
    if first <= last:
        ways += [f'{way} ("." [0-9]{{1,16}})?' for way in _whole(first, last)]
    for whole in sorted({low // unit, high // unit}):
        if first <= whole <= last:
            continue
        least, most = max(low - whole * unit, 0), min(high - whole * unit, unit - 1)
        [head] = _whole(whole, whole)
        if least == 0:
            ways.append(head)
        ways += [f'{head} "." {way}' for way in _fixed(least, most, decimals)]
        ways += [f'{head} "." {way} [0-9]{{1,4}}' for way in _fixed(least, most - 1, decimals)]
    return ways
