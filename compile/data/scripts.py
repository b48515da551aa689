"""Which script a text is written in, and the language where the script tells it. Pure.

Han without kana is taken for Chinese. Scripts that many languages share are reported as scripts (``latin``,
``cyrillic``): a guess at the language would be one more thing that is wrong sometimes.
"""

import unicodedata
from collections import Counter
from functools import lru_cache

_LOOKED_AT = 400
"""Characters; the script of a text is decided by then."""
_LANGUAGES = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "THAI": "th",
    "GREEK": "el",
    "HEBREW": "he",
}
_OTHER = "other"


def language_of(text: str) -> str:
    """``zh``, ``ja``, ``ko``, ``th``, ``el`` or ``he``; else the script's name; without letters ``other``."""
    counts = Counter(_script(character) for character in text[:_LOOKED_AT])
    del counts[""]
    if not counts:
        return _OTHER
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana and kana * 10 >= counts["CJK"]:
        counts["HIRAGANA"] += counts.pop("CJK", 0)
    # A character of Han or Hangul says about as much as three letters: foreign names do not outvote it.
    weighed = {name: count * (3 if name in ("CJK", "HANGUL") else 1) for name, count in counts.items()}
    script = max(sorted(weighed), key=lambda name: weighed[name])
    return _LANGUAGES.get(script, script.lower())


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """The first word of a letter's name; empty for what is no letter."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "").split(" ", 1)[0]
