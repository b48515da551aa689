"""What a quantizer took of a model that reads, and what it left in float."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.manifest import Fallback

LEDGER = "ledger.json"


@dataclass(frozen=True)
class Ledger:
    """``tensors``: how many matrices and convolutions there are; ``fallen``: those that stayed in float."""

    tensors: int = 0
    fallen: tuple[Fallback, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable["Ledger"]) -> "Ledger":
        """Of several networks as of one."""
        known = tuple(parts)
        return cls(sum(one.tensors for one in known), tuple(one for part in known for one in part.fallen))

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """What ``write`` left in ``folder``."""
        told = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
        return cls(told["tensors"], tuple(Fallback.model_validate(one) for one in told["fallen"]))

    def write(self, folder: Path) -> None:
        """Leave it in ``folder``."""
        told = {"tensors": self.tensors, "fallen": [one.model_dump(mode="json") for one in self.fallen]}
        (folder / LEDGER).write_text(json.dumps(told), encoding="utf-8")
