"""The engine's token ids must be those of the reference tokenizer: one other id, and every measurement
downstream is of another model."""

from collections.abc import Sequence
from typing import Any

from compile.errors import Refused

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


def compare(
    engine_ids: Sequence[Sequence[int]],
    engine_ids_special: Sequence[Sequence[int]],
    texts: Sequence[str],
    tokenizer: Any,
    bos: int | None,
) -> None:
    """Raises ``Refused`` at the first text whose ids differ. ``bos`` stands before a text, if there is one.

    ``engine_ids`` are without, ``engine_ids_special`` with the special tokens that the model adds.
    """
    for text, ids, special in zip(texts, engine_ids, engine_ids_special, strict=True):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        if list(ids) != wanted:
            raise Refused(
                f"token ids differ for {text!r:.80}: engine {list(ids)[:20]}, reference {wanted[:20]}"
            )
        begun = wanted if bos is None else [bos, *wanted]
        if list(special) != begun:
            raise Refused(f"BOS differs for {text!r:.80}: engine {list(special)[:5]}, reference {begun[:5]}")
