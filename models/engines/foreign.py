"""Errors of other people's libraries, made ours where they leave an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import EngineError, ModelsError

_WORDS = 400
"""Characters of what a library says; some say a page."""


@contextmanager
def converted(what: str, to: type[ModelsError] = EngineError) -> Iterator[None]:
    """Whatever the block raises becomes ``to``: ``what`` went wrong, and the library's words.

    For libraries that raise what they meet, some of it bare ``Exception``. Keep the block to calls of theirs:
    a mistake of ours in it would pass for theirs. Around an iteration it holds for every step.
    """
    try:
        yield
    except Exception as error:
        words = str(error).strip()[:_WORDS] or type(error).__name__
        raise to(f"{what}: {words}") from error
