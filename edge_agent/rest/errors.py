"""From this product's errors to OpenAI's, in one place: status, code, and the parameter to mend."""

import logging
from dataclasses import dataclass

from edge_agent.errors import (
    EdgeError,
    HubBroke,
    HubRefused,
    HubUnreachable,
    NoRoom,
    Overloaded,
    PolicyViolation,
    UnknownModel,
    WrongTask,
)
from models.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    EngineError,
    InvalidAudio,
    InvalidImage,
    InvalidTemplate,
    ModelsError,
    UnsafeFile,
    UnsupportedRequest,
)
from models.openai.errors import ApiError
from sync.errors import SyncError

log = logging.getLogger(__name__)

Known = (EdgeError, ModelsError, SyncError)
"""What ``to_api_error`` takes; anything else is a defect of ours and answered with 500."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a request calls its prompt, the most tokens of its answer, its answer's form, and a recording that
    is no part of the prompt.
    """

    prompt: str = "messages"
    limit: str = "max_tokens"
    form: str = "response_format"
    recording: str | None = None

    def option(self, name: str) -> str:
        """What it calls an option of ``models.engines.base.Sampling``."""
        return {"max_tokens": self.limit, "grammar": self.form, "trigger": "tools"}.get(name, name)


_RETRY_SECONDS = 2
"""Within this a crashed engine is usually back, and a call that others wait for often done."""


def to_api_error(error: EdgeError | ModelsError | SyncError, named: Named) -> ApiError:
    """The answer for ``error``, in the words of the request that it is about."""
    message = str(error)
    match error:
        case ApiError():
            return error
        case UnknownModel():
            return ApiError(404, _sentence(message), code="model_not_found", param="model")
        case WrongTask():
            return ApiError(400, _sentence(message), code="unsupported_model", param="model")
        case Overloaded():
            return ApiError(
                429, _sentence(message), code="rate_limit_exceeded", retry_after=error.retry_after
            )
        case PolicyViolation():
            return ApiError(403, _sentence(message), code="restricted")
        case HubRefused():
            return _from_hub(error)
        case HubUnreachable():
            return ApiError(503, _sentence(message), code="hub_unreachable", retry_after=_RETRY_SECONDS)
        case HubBroke():
            return ApiError(502, _sentence(message), code="hub_broke")
        case AnswerTooLong():
            return ApiError(400, _sentence(message), code="context_length_exceeded", param=named.limit)
        case ContextLengthExceeded():
            return ApiError(400, _sentence(message), code="context_length_exceeded", param=named.prompt)
        case UnsupportedRequest(option=str() as option):
            return ApiError(400, _sentence(message), code="unsupported_parameter", param=named.option(option))
        case UnsupportedRequest():
            return ApiError(400, _sentence(message), code="invalid_value", param=named.prompt)
        case InvalidImage():
            return ApiError(400, _sentence(message), code="invalid_image", param=named.prompt)
        case InvalidAudio():
            return ApiError(
                400, _sentence(message), code="invalid_audio", param=named.recording or named.prompt
            )
        case InvalidTemplate():
            return ApiError(400, _sentence(message), code="invalid_value", param=named.prompt)
        case NoRoom():
            return ApiError(503, _sentence(message), code="no_room", retry_after=_RETRY_SECONDS)
        case UnsafeFile():  # found when a model that rested wakes; waiting does not mend it
            return ApiError(503, _sentence(f"the model's files are refused: {message}"), code="unsafe_file")
        case EngineError():
            said, _, rest = message.partition("\n")  # a native library's words can be a page
            if rest:
                log.error("the engine failed: %s", message)
            return ApiError(503, _sentence(said), code="engine_failed", retry_after=_RETRY_SECONDS)
        case SyncError():
            reason = f"The call cannot be recorded, so it is not answered: {message}"
            return ApiError(503, reason, code="audit_unavailable", retry_after=_RETRY_SECONDS)
        case _:
            return ApiError(500, _sentence(message), code="internal_error")


def _from_hub(error: HubRefused) -> ApiError:
    """What the hub says to the caller's request is the caller's to read; what it says to us is not."""
    if error.status in (401, 403):
        return ApiError(502, f"The hub refuses this device: {error}", code="hub_refused")
    code, param = error.error.get("code"), error.error.get("param")
    return ApiError(
        error.status,
        str(error),
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
    )


def _sentence(message: str) -> str:
    """Begun and ended as one; but an option's name at its begin stays as requests spell it."""
    is_name = "_" in message.partition(" ")[0]
    begun = message if is_name else message[:1].upper() + message[1:]
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."
