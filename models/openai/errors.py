"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``.

::

    ApiError                 a ModelsError that knows its HTTP status and its error object
"""

from typing import Any

from models.errors import ModelsError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(ModelsError):
    """An answer that is an error. ``retry_after`` is in whole seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """OpenAI's family of the error, which follows from the status."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the caller can mend it; ``param`` says where."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, message: str) -> ApiError:
    """400: an option that is not honoured here, and that is therefore not ignored either."""
    return bad_request(message, param, "unsupported_parameter")
