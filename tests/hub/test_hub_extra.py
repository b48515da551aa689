"""``pip install outpost[hub]`` brings every package that the hub imports, those imported late included."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import cloud_hub
for each in pkgutil.walk_packages(cloud_hub.__path__, "cloud_hub."):
    importlib.import_module(each.name)
ours = [m for name, m in sys.modules.items() if name.partition(".")[0] in ("cloud_hub", "sync", "models")]
print(json.dumps([module.__file__ for module in ours]))
"""


def imports(source: Path) -> Iterator[str]:
    """The top-level packages that a module names, but for those that only a type checker sees."""
    tree = ast.parse(source.read_bytes())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def brought(distribution: str, *extras: str) -> set[str]:
    """A distribution and all that it requires here, by canonical names."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(distribution, frozenset(extras))]
    while waiting:
        current = name, wanted = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def test_the_hub_extra_brings_what_the_hub_imports() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    named = {name for file in json.loads(done.stdout) for name in imports(Path(file))}
    owners = importlib.metadata.packages_distributions()
    needed = {canonicalize_name(owner) for name in named for owner in owners.get(name, ())}
    assert {"iotcore", "sqlalchemy", "tuf"} <= needed
    assert needed - brought("outpost", "hub") == set()
