"""What went wrong comes in; an answer in OpenAI's form goes out.

    {"error": {"message": "n: at most 16.", "type": "invalid_request_error", "param": "n", "code": null}}

Clients decide by the status and the type whether to try again: 429 and 503 say when (Retry-After), 400 says
never. Nothing that the server knows about itself (paths, tracebacks) is told.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

RETRY_SECONDS = 1
"""How long a refused client shall wait: a slot of a small model is free within about a second."""

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
"""Status -> type; every other one is "invalid_request_error"."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Say what and where.

        Args:
            status: The answer's status.
            message: For people.
            param: Which field of the request.
            code: For programs.
            headers: Of the answer.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request asks for what is not there or not allowed; asking again changes nothing."""
    return ApiError(400, message, param=param, code=code)


def busy(status: int, message: str, code: str) -> ApiError:
    """The server cannot now; it can later."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an `ApiError`."""
    assert isinstance(error, ApiError)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what the routing refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}."
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, headers=headers).response()


async def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer our own mistake; the traceback goes to the log, not to the client."""
    return ApiError(500, "the server failed; its log says why.", code="internal_error").response()
