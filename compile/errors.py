"""Errors of ``compile``.

::

    CompileError
    ├── BadRecipe            a recipe with a wrong key, a wrong value or a file that is not there (exit 2)
    ├── BadFigures           a file that is not figures of devices as the hub writes them (exit 2)
    ├── BadData              a data set with bad rows or near-duplicates across its splits; lists them
    ├── UnsupportedBase      a base model that cannot be brought into shape exactly
    ├── TrainingFailed       a run that cannot begin or that diverged; says at which epoch
    ├── TeacherFailed        a teacher that cannot be asked, says no, or leaves too much unanswered
    ├── ToolFailed           a converter or the quantizer failed; carries the end of its output
    └── Refused              measured, and not good enough: budget or verification (exit 3)
"""


class CompileError(Exception):
    """Base of every error that this package raises on purpose."""


class BadRecipe(CompileError):
    """A recipe is wrong. The message names file, line and key, and the nearest valid key."""


class BadFigures(CompileError):
    """A file does not hold what devices measured; the message names it."""


class BadData(CompileError):
    """A data set is wrong. The message lists the rows."""


class UnsupportedBase(CompileError):
    """A base model cannot be brought into a form that is exactly right; a guess would be worse."""


class TrainingFailed(CompileError):
    """A training run cannot begin, or its loss is no number any more."""


class TeacherFailed(CompileError):
    """A teacher cannot be asked, or did not answer; the message says what it said."""


class ToolFailed(CompileError):
    """A converter or the quantizer failed; the message carries the end of what it said."""


class Refused(CompileError):
    """A budget or a verification says no, with numbers."""
