"""One step of a recipe, in a process of its own: ``python -m compile.step_child`` (see ``compile.executor``).

Makes the line again from the recipe, finds the step by its label, and runs it into the cache. Writes
``PART NOTE`` lines on stdout; an error that was raised on purpose becomes a last line ``! JSON`` and exit 1.
"""

import json
import os
import sys
import time
from pathlib import Path

from compile.child import die_with_parent
from compile.errors import CompileError
from compile.line import Workshop
from compile.lines.make import make_line
from compile.steps import Cache, in_order
from models.errors import ModelsError


def main(recipe: str, label: str, cache: str, converters: str, threads: str, parent: str) -> int:
    """Run the step ``label`` of ``recipe``."""
    die_with_parent()
    if parent != "0" and os.getppid() != int(parent):  # it ended before the line above
        return 1
    # What libraries print must not be taken for progress: they get stderr, we keep the pipe.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        workshop = Workshop(Path(converters), int(threads), time.monotonic, os.environ)
        steps = in_order(make_line(Path(recipe), workshop).steps)
        step = next((one for one in steps if one.label == label), None)
        if step is None:
            raise CompileError(
                f"{label}: no longer a step of {recipe}: it or its files changed during the run"
            )
        Cache(Path(cache)).run(step, lambda done, note: print(f"{done:.4f} {note}", file=told))
    except (CompileError, ModelsError) as error:
        print("! " + json.dumps([type(error).__name__, str(error)]), file=told)
        return 1
    except ModuleNotFoundError as error:
        missing = f"{error.name} is missing: pip install 'outpost[compile]'"
        print("! " + json.dumps(["CompileError", missing]), file=told)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
