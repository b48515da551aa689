"""An importance matrix on disk: safetensors with a float32 vector per matrix, and where they come from.

Apart from ``compile.gguf.importance``, which measures, so that who only reads one loads no engine.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UnsafeFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FACTS = "outpost"


@dataclass(frozen=True)
class ImportanceFacts:
    """Where an importance matrix comes from. ``text`` and ``model`` are digests of the files."""

    text: str
    model: str
    tokens: int
    window: int


def describe(path: Path) -> ImportanceFacts:
    """The facts inside an importance file; its numbers are not read. Raises ``UnsafeFile``."""
    from models.safetensors import read_header

    metadata = read_header(path).metadata
    try:
        return ImportanceFacts(**json.loads(metadata[_FACTS]))
    except (ValueError, KeyError, TypeError) as error:
        raise UnsafeFile(f"{path.name}: not an importance matrix: {error!r}") from error


def read_columns(path: Path) -> "dict[str, npt.NDArray[np.float32]]":
    """The weights of every matrix's columns, by the matrix's name. The file is one that ``describe`` read."""
    import numpy as np
    from safetensors.numpy import load_file

    return {name: np.ascontiguousarray(values) for name, values in load_file(path).items()}


def write(path: Path, columns: "Mapping[str, npt.NDArray[np.float32]]", facts: ImportanceFacts) -> None:
    """Law: ``read_columns`` and ``describe`` give back what was written."""
    from safetensors.numpy import save_file

    save_file(dict(columns), path, metadata={_FACTS: json.dumps(asdict(facts))})
