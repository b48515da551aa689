"""The engine's token ids must be those of the reference tokenizer: one other id, and every measurement
downstream is of another model. Pure."""

from collections.abc import Callable, Sequence
from typing import Any

Reading = tuple[str, Sequence[int], Sequence[int]]
"""A text, its ids, and its ids with the special tokens that the model adds."""

CORPUS = (
    "Bearing 6205-2RS on conveyor C3 squeals; temp 84.5 °C, was 61°C at 05:40.",
    "don't, can't, we'll, I'VE, THEY'RE -- it's 3,141,592.65 / 1.5e-9 (0x1F4A9)",
    "叉车托盘含水偏高18%，木头发霉味，还没上架，放在收货区等品管",
    "液压站压力波动 3.2–4.8 MPa，油温６５℃，泄漏点：Ｙ７阀",
    "日本語のテキスト：かな、カナ、漢字。한국어 문장입니다. ภาษาไทย हिन्दी العربية עברית",
    "Привет, Ünïcödé naïve café ﬁ ½ ² ™ ﷽ İstanbul ẞ",
    "🚀👩‍👩‍👧‍👦🏳️‍🌈🇨🇳 ❤️‍🔥 \U0001f9d1\U0001f3fd‍\U0001f527 ¯\\_(ツ)_/¯",
    "é vs é; ñ Å Å; zero​width, bom\ufeff, nbsp\u00a0, ideographic\u3000space",
    "def f(x: int) -> str:\n\treturn f\"{x!r:>10}\"  # tab\n\n\n    if x == 0x7f: pass\r\n",
    "SELECT * FROM t WHERE a<>'b' AND c LIKE '%_\\%' -- ;\n{\"k\":[1,2.0,null,true]}",
    "<div class=\"a\">&nbsp;</div>\n```rust\nfn main() { println!(\"{}\", 1u8 << 3); }\n```",
    " leading", "  two", "   three   ", "trailing ", "\n", "\n\n", " \n \n", "\t\t x", "\r\n", " ", "",
    "a" * 70, "!?" * 20, "1234567890" * 3, "....", "=====", "\x00\x01\x7f control",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>a<|endoftext|>",
    "<|im_start|> <|im_end |><|im_start|", "<repo_name>x<file_sep>y<issue_start>",
)  # fmt: skip
"""Many scripts, joined emoji, combining marks, code, white space, digits, special tokens whole and broken."""


def readings(tokenizer: Any, bos: int | None) -> list[Reading]:
    """What the reference tokenizer makes of every text. ``bos`` stands before a text, if there is one."""
    found = []
    for text in CORPUS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found.append((text, ids, ids if bos is None else [bos, *ids]))
    return found


def first_difference(
    expected: Sequence[Reading], tokenize: Callable[[str, bool, bool], Sequence[int]]
) -> str:
    """The first text that the engine reads otherwise, with both readings; empty when there is none.

    ``tokenize(text, add_special, parse_special)`` is the engine's.
    """
    for text, plain, begun in expected:
        for special, ids in ((False, plain), (True, begun)):
            got = list(tokenize(text, special, True))
            if got != list(ids):
                where = " at its beginning" if special else ""
                return f"token ids differ for {text!r:.80}{where}: {parted(got, ids)}"
    return ""


def parted(got: Sequence[int], ids: Sequence[int]) -> str:
    """Both readings from where they part on."""
    pairs = zip(got, ids, strict=False)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(got), len(ids)))
    ours, theirs = list(got[at : at + 8]), list(ids[at : at + 8])
    return f"from token {at + 1} on the engine has {ours}, the reference {theirs}"
