"""GGUF files written by hand, sound or not."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any


def build(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = (),
    data: int = 0,
    version: int = 3,
) -> bytes:
    """A GGUF file from metadata (str, int, bool, float, lists) and tensors (name, shape, type, offset)."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    def typed(value: Any) -> tuple[int, bytes]:
        match value:
            case bool():
                return 7, struct.pack("<?", value)
            case int():
                return 4, struct.pack("<I", value)
            case float():
                return 12, struct.pack("<d", value)
            case str():
                return 8, text(value)
        items = [typed(item) for item in value]
        kind = items[0][0] if items else 4
        return 9, struct.pack("<IQ", kind, len(items)) + b"".join(raw for _, raw in items)

    out = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, raw = typed(value)
        out += text(key) + struct.pack("<I", kind) + raw
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    alignment = metadata.get("general.alignment", 32)
    return out + bytes(-len(out) % alignment + data)
