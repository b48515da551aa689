"""Pages as an office prints and scans them, Chinese and English, with what is on them.

    python examples/ocr/pages.py .cache/pages --count 60

Work orders and invoices of random numbers and dates, drawn with Noto Sans CJK (package
cvttf-notosanscjk-regular), a little askew, blurred and stored as JPEG. A seed makes the same pages again.
"""

import argparse
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONT = "NotoSansCJKtc-Regular.otf"
PARTS = (("pump", "泵"), ("valve", "阀门"), ("gearbox", "齿轮箱"), ("conveyor", "输送带"), ("motor", "电机"))
FAULTS = (
    ("leaks oil at the seal", "密封处漏油"),
    ("is louder than usual", "噪音大于平时"),
    ("does not start", "无法启动"),
    ("runs hot", "温度过高"),
)
CURRENCIES = ("EUR", "USD", "CNY")


def write_pages(folder: Path, count: int, seed: int = 7) -> Path:
    """Write JPEGs and ``texts.jsonl`` into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, rows = random.Random(seed), []
    for number in range(1, count + 1):
        lines = text_of(chance)
        name = f"{number:03}.jpg"
        drawn(lines, chance).save(folder / name, quality=chance.randint(55, 90))
        rows.append(json.dumps({"file": name, "text": "\n".join(lines)}, ensure_ascii=False))
    (folder / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def text_of(chance: random.Random) -> list[str]:
    """The lines of a page."""
    number, day = chance.randint(1000, 9999), f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
    amount = f"{chance.randint(1, 99):,}{chance.randint(0, 999):03}.{chance.randint(0, 99):02}"
    (part, chinese_part), (fault, chinese_fault) = chance.choice(PARTS), chance.choice(FAULTS)
    line = chance.randint(1, 12)
    if chance.random() < 0.5:
        return [
            f"Work order {number}",
            f"Line {line}: the {part} {fault}",
            f"Due {day}, cost {amount} {chance.choice(CURRENCIES)}",
        ]
    return [f"工单 {number}", f"{line} 号线 {chinese_part}{chinese_fault}", f"日期 {day} 金额 {amount} 元"]


def drawn(lines: list[str], chance: random.Random) -> Image.Image:
    """A page with these lines."""
    spec = find_spec("cvttf_NotoSansCJK_Regular")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("Noto Sans CJK is missing: pip install cvttf-notosanscjk-regular==1.0")
    path = Path(next(iter(spec.submodule_search_locations))) / FONT
    font, step = ImageFont.truetype(path, chance.randint(22, 34)), 64
    paper, ink = chance.randint(225, 255), chance.randint(0, 90)
    page = Image.new("L", (800, 60 + step * len(lines)), paper)
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        pen.text((chance.randint(25, 60), 28 + step * row), line, ink, font)
    turned = page.rotate(chance.uniform(-1.0, 1.0), Image.Resampling.BICUBIC, fillcolor=paper)
    return turned.filter(ImageFilter.GaussianBlur(chance.uniform(0.0, 1.0)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where pages and texts.jsonl are written")
    parser.add_argument("--count", type=int, default=60)
    asked = parser.parse_args()
    print(write_pages(asked.folder, asked.count))
