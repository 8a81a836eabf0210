"""The application: the routes of all APIs, and how errors are told."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from edge_llama.errors import EdgeLlamaError
from edge_llama.server.failures import ApiError, error_response, failure
from edge_llama.server.gate import Gate
from edge_llama.server.guard import Guard
from edge_llama.server.handling import Server
from edge_llama.server.metrics import Metrics
from edge_llama.server.pool import Pool
from edge_llama.server.routers import ROUTERS
from edge_llama.server.settings import ServerSettings
from edge_llama.server.store import ResponseStore
from edge_llama.server.traffic import Traffic

_SHOWN_ERRORS, _LONGEST_NAME = 3, 100
_OF_UNION = re.compile(r"<[\w ]+>|\w+=.*|\[key\]|[a-z-]+\[.*\]", re.DOTALL)
"""Tags (:mod:`edge_llama.server.fields`), and pydantic's own names."""


def create(pool: Pool, settings: ServerSettings | None = None) -> FastAPI:
    """The server as an ASGI application, guarded as ``settings`` say; it closes ``pool`` at its end.

    Raises OptionError for hosts, origins and a key in ``settings`` that are none, OutputError if responses can't be
    kept where they say.
    """
    settings, traffic = settings or ServerSettings(), Traffic()
    gate, limits = Gate(settings), settings.limits
    kept = ResponseStore(settings.store, max_number=limits.stored, max_bytes=limits.stored_bytes)
    server = Server(pool, settings, traffic, Metrics(traffic), kept)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await pool.close()
            kept.close()

    app = FastAPI(title="edge-llama", version=version("edge-llama"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router)
    _tell_errors(app)
    app.add_middleware(Guard, gate=gate, limits=settings.limits, traffic=traffic, metrics=server.metrics)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # as FastAPI's own pages say
    return app


def _tell_errors(app: FastAPI) -> None:
    def told(by: Callable[[Any], ApiError]) -> Callable[[Request, Any], Awaitable[Response]]:
        async def tell(request: Request, error: Any) -> Response:
            return error_response(by(error), request.url.path)

        return tell

    app.add_exception_handler(ApiError, told(lambda error: error))
    app.add_exception_handler(EdgeLlamaError, told(failure))
    app.add_exception_handler(RequestValidationError, told(_invalid))
    app.add_exception_handler(HTTPException, told(_http))


def _http(error: HTTPException) -> ApiError:
    """What the framework says: no such path, no such method (and in a header, which there are)."""
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first few things that are wrong with a request, each with its place."""
    wrong = [_one(each) for each in error.errors()]
    more = f"; and {len(wrong) - _SHOWN_ERRORS:,} more" if len(wrong) > _SHOWN_ERRORS else ""
    return ApiError(400, "; ".join(text for text, _ in wrong[:_SHOWN_ERRORS]) + more, param=wrong[0][1] or None)


def _one(error: dict[str, Any]) -> tuple[str, str]:
    place = _place(error)
    if error["type"] == "refused":
        inner = error["ctx"]["param"]
        return (f"{place}.{error['msg']}", f"{place}.{inner}") if place else (error["msg"], inner)
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such field", place
    return f"{place}: {error['msg']}" if place else error["msg"], place


def _place(error: dict[str, Any]) -> str:
    """Where in a request something is wrong."""
    parts = list(error["loc"][1:])
    name = [str(parts.pop())[:_LONGEST_NAME]] if error["type"] == "extra_forbidden" else []  # may look like anything
    return ".".join([*(str(part) for part in parts if not _is_of_union(part)), *name])


def _is_of_union(part: object) -> bool:
    """Whether a part of an error's place is no field but pydantic's name for one of several types."""
    return isinstance(part, str) and _OF_UNION.fullmatch(part) is not None


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which what is wrong with a request is a 400."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation.get("responses", {}).pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
