"""Personal data in text: found by form and, where there is one, by check digit. Pure.

Finds e-mail addresses, telephone numbers, IBANs (ISO 13616, mod 97), payment card numbers (ISO/IEC 7812,
Luhn), Chinese identity numbers (GB 11643, ISO 7064 mod 11-2) and IPv4 addresses. Names, postal addresses
and the like have no form: a clean scan does not mean that nobody is named.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

KINDS = ("email", "iban", "card", "chinese_id", "ipv4", "phone")

# Letters and digits of ASCII only: in Chinese text a number is followed by Han characters without a space.
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMS: Mapping[str, re.Pattern[str]] = {
    "email": re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
        r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
    ),
    "iban": re.compile(_BEFORE + r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}" + _AFTER),
    "card": re.compile(_BEFORE + r"[0-9](?:[ -]?[0-9]){12,18}" + _AFTER),
    "chinese_id": re.compile(_BEFORE + r"[1-9][0-9]{16}[0-9Xx]" + _AFTER),
    "ipv4": re.compile(r"(?<![A-Za-z0-9_.])" + _OCTET + r"(?:\." + _OCTET + r"){3}(?![A-Za-z0-9_]|\.[0-9])"),
    "phone": re.compile(
        r"(?<![A-Za-z0-9_+.,-])(?:"
        r"\+[1-9](?:[ ./-]?\(?[0-9]\)?){7,14}"  # international, ITU-T E.164
        r"|1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}"  # mobile in China
        r"|\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}"  # North America
        r"|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4}"
        r"|0[1-9][0-9]{1,3}[ /-][0-9]{3,4}[ -]?[0-9]{3,5}"  # area code with a leading zero
        r")" + _AFTER
    ),
}
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
"""Countries by the length of their IBANs (ISO 13616 registry)."""
_IBAN_LENGTHS = {code: length for length, codes in _IBAN_COUNTRIES.items() for code in codes.split()}
_CARD_LENGTHS = {2: (16,), 3: (14, 15, 16), 4: (13, 16, 19), 5: (16,), 6: (16, 17, 18, 19)}
"""Digits of a card number by its first digit, of the networks that are in use."""
_WORTH_A_LOOK = re.compile(r"@|[0-9](?:[^A-Za-z]{0,2}[0-9]){5}|\.[0-9]+\.")


@dataclass(frozen=True)
class Found:
    """One hit: its kind and where it stands in the text."""

    kind: str
    start: int
    end: int


def find(text: str) -> tuple[Found, ...]:
    """Every hit, in the order of the text; none overlaps another."""
    if not _WORTH_A_LOOK.search(text):
        return ()
    taken: list[Found] = []
    for kind in KINDS:
        for start, end in _FINDERS[kind](text):
            at = bisect_left(taken, start, key=lambda one: one.start)
            before, after = taken[at - 1] if at else None, taken[at] if at < len(taken) else None
            if (before is None or before.end <= start) and (after is None or end <= after.start):
                taken.insert(at, Found(kind, start, end))
    return tuple(taken)


def mask(text: str) -> str:
    """``text`` with every hit replaced by its kind in brackets. Law: ``find(mask(x)) == ()``."""
    while found := find(text):
        parts, end = [], 0
        for one in found:
            parts += [text[end : one.start], f"[{one.kind.upper()}]"]
            end = one.end
        text = "".join((*parts, text[end:]))
    return text


def _by_form(kind: str, holds: Callable[[str], bool]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def spans(text: str) -> Iterator[tuple[int, int]]:
        for match in _FORMS[kind].finditer(text):
            if holds(match.group()):
                yield match.span()

    return spans


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """The form takes in what follows: the country says where the number ends."""
    for match in _FORMS["iban"].finditer(text):
        wanted = _IBAN_LENGTHS.get(match.group()[:2], 0)
        counted = 0
        for at, character in enumerate(match.group(), start=1):
            counted += character != " "
            if counted == wanted:
                if _is_iban(match.group()[:at].replace(" ", "")):
                    yield match.start(), match.start() + at
                break


def _is_iban(number: str) -> bool:
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if len(digits) not in _CARD_LENGTHS.get(digits[0], ()):
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_chinese_id(text: str) -> bool:
    month, day = int(text[10:12]), int(text[12:14])
    if not (1 <= month <= 12 and 1 <= day <= 31 and text[6:8] in ("18", "19", "20")):
        return False
    total = sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def _anything(text: str) -> bool:
    return True


_FINDERS: Mapping[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _by_form("email", _anything),
    "iban": _ibans,
    "card": _by_form("card", _is_card),
    "chinese_id": _by_form("chinese_id", _is_chinese_id),
    "ipv4": _by_form("ipv4", _anything),
    "phone": _by_form("phone", _anything),
}
