"""Questions and answers from the package ``chatterbot-corpus``, as JSONL: retrieval with known answers.

``python examples/search/pairs.py TARGET.jsonl``. Takes the English files that are questions with one answer
each, and of equal questions the first.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

FILES = ("ai", "coding", "science", "tech_support", "trivia")
LONGEST = 1000
"""Characters of an answer; the longest are programs."""


def pairs(folder: Path) -> Iterator[dict[str, str]]:
    """Questions and answers, in the order of the files."""
    seen: set[str] = set()
    for name in FILES:
        document = yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))
        for talk in document["conversations"]:
            if len(talk) != 2:
                continue
            question, answer = (str(line).strip() for line in talk)
            if question.lower() not in seen and answer and len(answer) <= LONGEST:
                seen.add(question.lower())
                yield {"question": question, "answer": answer}


def main(target: Path) -> None:
    """Write ``target``."""
    spec = find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("chatterbot-corpus is missing: pip install chatterbot-corpus==1.3.3")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "english"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = list(pairs(folder))
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} questions with answers in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="the JSONL file to write")
    main(parser.parse_args().target)
