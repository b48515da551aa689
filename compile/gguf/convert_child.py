"""llama.cpp's converters, run as they are, for tokenizers that they have no name for.

A converter names a byte-level BPE's splitting rule by the hash of the ids of one text, so it knows only the
vocabularies that somebody registered. Where it does not know one, the rule itself is read here from
``tokenizer.json``: a rule that is exactly one that llama.cpp implements gets its name, every other one is
refused as before. ``compile.evaluate.tokens`` proves the ids equal afterwards.

``python convert_child.py CONVERTERS_FOLDER SCRIPT ARGUMENTS...``, by its path: the process sees nothing of
this package but this file.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def splitting_rule(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a ``tokenizer.json``; None when it is not one known here."""
    if tokenizer.get("normalizer") is not None or tokenizer.get("model", {}).get("type") != "BPE":
        return None
    steps = tokenizer.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    # How offsets are trimmed changes no id.
    rule = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]
    if rule == [_BYTE_LEVEL]:
        return "gpt-2"
    if rule == [_DIGITS, _BYTE_LEVEL]:
        return "smollm"
    return None


def _main(folder: str, script: str, *arguments: str) -> None:
    sys.path[0] = folder
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def name(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            text = (Path(self.dir_model) / "tokenizer.json").read_text(encoding="utf-8")
            rule = splitting_rule(json.loads(text))
            if rule is None:
                raise
            return rule

    TextModel.get_vocab_base_pre = name
    sys.argv = [str(Path(folder) / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main(*sys.argv[1:])
