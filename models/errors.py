"""Errors of ``models``.

::

    ModelsError
    ├── InvalidDigest            a string that is not ``sha256:<64 hex>``
    ├── InvalidManifest          a release manifest that breaks a rule of its schema
    ├── DigestMismatch           bytes that are not what their digest says
    ├── UnsafeFile               a model file refused before a native library sees it
    ├── InvalidTemplate          a chat template that fails or breaks out of its sandbox
    └── EngineError              an engine could not do what was asked
        ├── InvalidRequest           what was asked cannot be answered: the caller's doing, not the model's
        │   ├── ContextLengthExceeded    prompt and answer do not fit the context
        │   │   └── AnswerTooLong            the prompt fits, the answer that was asked for not beside it
        │   ├── UnsupportedRequest       the engine cannot honour an option, and will not ignore it
        │   ├── InvalidImage             a picture that cannot be read, or that is too large to be decoded
        │   └── InvalidAudio             a recording that cannot be read, or that is too long
        ├── NoTensorRt               TensorRT is not to be had on this machine; says what to install
        └── UnknownAdapter           no adapter of that name is attached
"""

from pathlib import Path


class ModelsError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidDigest(ModelsError):
    """A string is not a digest of the form ``sha256:<64 lower-case hex digits>``."""


class InvalidManifest(ModelsError):
    """A release manifest breaks a rule; the message names the field."""


class DigestMismatch(ModelsError):
    """Bytes differ from what their digest promises."""


class UnsafeFile(ModelsError):
    """A model file is malformed, hostile or of a refused kind; no native library has seen it."""


def unreadable(path: Path, error: OSError | ValueError | RecursionError) -> UnsafeFile:
    """A file that cannot be read, and why; callers of an API learn no folder of this machine."""
    reason = error.strerror if isinstance(error, OSError) else error
    return UnsafeFile(f"{path.name}: cannot be read: {reason}")


class InvalidTemplate(ModelsError):
    """A chat template cannot be compiled or rendered in the sandbox."""


class EngineError(ModelsError):
    """An engine could not do what was asked."""


class InvalidRequest(EngineError):
    """What was asked cannot be answered. It is the caller's doing and says nothing about the model."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus answer need more positions than the context has."""


class AnswerTooLong(ContextLengthExceeded):
    """The prompt fits the context, and the most that the answer may have does not fit beside it."""


class UnsupportedRequest(InvalidRequest):
    """What this engine cannot honour. It is refused, never ignored. ``option``: the one that asks for it."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class InvalidImage(InvalidRequest):
    """A picture cannot be read, or is larger than what may be decoded."""


class InvalidAudio(InvalidRequest):
    """A recording cannot be read, or is longer than what is heard."""


class NoTensorRt(EngineError):
    """TensorRT, the GPU or a build of ONNX Runtime for both is missing here; the message says which."""


class UnknownAdapter(EngineError):
    """No adapter of that name is attached to the base model."""
