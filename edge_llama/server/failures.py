"""What went wrong, as HTTP says it: a status, and a body in the API's own form."""

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from edge_llama.errors import (
    BusyError,
    ContextFullError,
    DeadlineError,
    EdgeLlamaError,
    EngineError,
    InputError,
    printable,
)

ANTHROPIC_PATHS = "/v1/messages"
"""Below it errors have Anthropic's form; everywhere else OpenAI's."""
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FOLDER = re.compile(r"\A(?:[A-Za-z]:)?[/\\](?:[^:]*[/\\])?(?=[^:/\\]+: )")
_LONGEST, _LONGEST_NAME = 1000, 100
"""Characters of a message, which may quote a client's text, and of a field's name, which may be one."""


class ApiError(Exception):
    """What a client is told, whichever API it speaks."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``code`` and ``param`` are OpenAI's: a word for programs, and the field that is wrong."""
        super().__init__(message)
        self.status = status
        self.message = printable(" ".join(message[:_LONGEST].split()))
        self.code = code
        self.param = param and param[:_LONGEST_NAME]
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        return _OPENAI_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's form."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's form."""
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": None}

    def body(self, path: str) -> dict[str, Any]:
        """In the form of the API that ``path`` belongs to."""
        return self.anthropic() if path.startswith(ANTHROPIC_PATHS) else self.openai()


def without_folder(text: str) -> str:
    """An error's text, which begins with the file that it is about, without the folder: that is nobody's business."""
    return _FOLDER.sub("", text)


def failure(error: EdgeLlamaError) -> ApiError:
    """What a client is told of an error of the runtime."""
    text = without_folder(str(error))
    if isinstance(error, ContextFullError):
        # Agents look for these words and both numbers, without commas, to know that they have to compact.
        too_long = f"prompt is too long: {error.needed} tokens > {error.maximum} maximum"
        return ApiError(400, f"{too_long}: {text}", code="context_length_exceeded")
    if isinstance(error, InputError):
        return ApiError(400, text, code="invalid_value")
    if isinstance(error, BusyError):
        return ApiError(429, text, code="busy", headers={"Retry-After": "1"})
    if isinstance(error, DeadlineError):
        return ApiError(504, text, code="timeout")
    if isinstance(error, EngineError):
        return ApiError(503, text, code="engine_failed", headers={"Retry-After": "1"})
    return ApiError(500, text)


def encoded(data: object) -> bytes:
    """JSON in UTF-8, whatever texts are in it: what UTF-8 can't express is escaped."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with ``data`` as JSON."""
    return Response(encoded(data), status, dict(headers or {}), media_type="application/json")


def error_response(error: ApiError, path: str) -> Response:
    """A response that tells of ``error`` in the form of the API that ``path`` belongs to."""
    return json_response(error.body(path), error.status, error.headers)
