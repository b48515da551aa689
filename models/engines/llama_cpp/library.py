"""The native library: loaded once, silent, with the errors that it logged at hand.

``llama_cpp`` is imported when the first engine is made, not with this module.
"""

import threading
from collections import deque
from functools import cache
from typing import Any

from models.errors import EngineError

_ERROR_LEVEL = 4
_errors: deque[str] = deque(maxlen=4)
_loading = threading.Lock()


def last_error() -> str:
    """What llama.cpp logged as errors since it was asked last."""
    lines = "; ".join(_errors)
    _errors.clear()
    return lines or "llama.cpp gave no reason"


def library() -> Any:
    """llama-cpp-python's low-level module. Raises ``EngineError`` when it is not installed."""
    with _loading:
        return _load_library()


def build(lib: Any) -> str:
    """Which llama.cpp this is, to the letter: state that another one wrote may mean something else."""
    from llama_cpp import __version__

    return f"{__version__} {lib.llama_print_system_info().decode('utf-8', 'replace')}"


@cache
def _load_library() -> Any:
    try:
        from llama_cpp import llama_cpp as lib
    except ImportError as error:
        raise EngineError("llama-cpp-python is missing: pip install 'outpost[edge]'") from error
    lib.llama_log_set(keep_errors(lib), None)
    lib.llama_backend_init()
    return lib


@cache
def keep_errors(lib: Any) -> Any:
    """A log callback that is silent and remembers errors. Cached: C keeps a pointer to it."""

    def callback(level: int, text: bytes, user_data: Any) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode("utf-8", "replace").strip())

    return lib.llama_log_callback(callback)
