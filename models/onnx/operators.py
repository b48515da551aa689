"""Which operators a file may use, those called by its own functions included."""

from collections.abc import Mapping

from models.errors import UnsafeFile
from models.onnx.wire import MAX_FIELDS

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Whose operators the runtime brings along. Functions that a file defines may be of any other domain."""

_REFUSED_OPERATORS = frozenset(
    {("com.microsoft", name) for name in ("EPContext", "PythonOp", "PythonOpGrad", "ATen")}
)
"""They load binaries, or run code, that the file only names."""

Operator = tuple[str, str]
"""Domain and name; the domain ``ai.onnx`` is written as none."""


def check_operators(
    called: Mapping[Operator, int], functions: Mapping[Operator, Mapping[Operator, int]]
) -> None:
    """``called``: all nodes of a file; ``functions``: what each function that it defines calls.

    Raises ``UnsafeFile``.
    """
    _check_expansion(functions)
    for domain, name in called:
        if (domain, name) in functions:
            continue
        if domain not in DOMAINS:
            raise UnsafeFile(f"operator {name!r:.100} is of the unknown domain {domain!r:.100}")
        if (domain, name) in _REFUSED_OPERATORS:
            raise UnsafeFile(f"operator {name!r} runs what the file only names; it is refused")


def _check_expansion(functions: Mapping[Operator, Mapping[Operator, int]]) -> None:
    """Functions are written out where they are called. Refuse those that would go on for ever, or nearly."""
    sizes: dict[Operator, int] = {}
    begun: set[Operator] = set()
    for first in functions:
        stack = [first]
        while stack:
            name = stack[-1]
            inner = [call for call in functions[name] if call in functions]
            waiting = [call for call in inner if call not in sizes]
            if not waiting:
                calls = functions[name]
                sizes[name] = sum(count * (1 + sizes.get(call, 0)) for call, count in calls.items())
                if sizes[name] > MAX_FIELDS:
                    raise UnsafeFile(f"function {name[1]!r:.100} stands for more than {MAX_FIELDS} nodes")
                begun.discard(name)
                stack.pop()
            elif name in begun:
                raise UnsafeFile(f"function {name[1]!r:.100} calls itself")
            else:
                begun.add(name)
                stack += waiting
