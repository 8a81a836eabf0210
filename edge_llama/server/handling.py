"""What every endpoint does with a request: find the server, have a model answer, send that as the client wants it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from edge_llama.model import Model
from edge_llama.server.asking import Answers, Ask, begun
from edge_llama.server.events import EventStream, Writer, unless_left
from edge_llama.server.failures import ApiError, json_response
from edge_llama.server.fields import IGNORED_HEADER, Fields
from edge_llama.server.metrics import Metrics
from edge_llama.server.pool import Pool
from edge_llama.server.settings import ServerSettings
from edge_llama.server.store import ResponseStore
from edge_llama.server.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Server:
    """What the endpoints share."""

    pool: Pool
    settings: ServerSettings
    traffic: Traffic
    metrics: Metrics
    responses: ResponseStore


def server_of(request: Request) -> Server:
    """That of a request."""
    server: Server = request.app.state.server
    return server


async def _here(request: Request) -> Server:
    """A coroutine: what is none, FastAPI calls in a thread of its few, for each request."""
    return server_of(request)


Here = Annotated[Server, Depends(_here)]
"""The parameter of an endpoint that gets the server."""


def model_name(server: Server, asked: str | None) -> str:
    """What a request asks for; left out, the one model that there is. ApiError if there are several."""
    if asked is not None:
        return asked
    names = [entry.name for entry in server.pool.entries]
    if len(names) == 1:
        return names[0]
    raise ApiError(400, f"model is missing: there are {', '.join(names)}", param="model")


async def answer(
    request: Request,
    fields: Fields,
    model: str,
    ask: Callable[[Model], Ask],
    writer: Callable[[Answers], Writer],
    *,
    is_streamed: bool,
    ignored: Sequence[str] = (),
) -> Response:
    """The response to a request: what ``ask`` says is asked of the model, as ``writer`` tells it.

    ``ignored`` are headers and other things of the request that had no effect, beside those of its ``fields``.
    """
    server = server_of(request)
    headers = headers_of(fields, ignored)

    def begin() -> Awaitable[Answers]:
        return begun(server.pool, model, ask, server.settings.limits)

    def counted(answers: Answers) -> Writer:
        request.state.counted = answers.counts
        return writer(answers)

    async def whole() -> Mapping[str, Any]:
        async with await begin() as answers:
            return counted(answers).body(await answers.whole())

    if is_streamed:
        seconds = server.settings.keep_alive_seconds
        return EventStream(begin, counted, request.url.path, keep_alive_seconds=seconds, headers=headers)
    return await _whole(request, whole(), headers)


async def worked(
    request: Request,
    fields: Fields,
    model: str,
    work: Callable[[Model], Mapping[str, Any]],
    *,
    ignored: Sequence[str] = (),
) -> Response:
    """The response to a request that wants no answer of the model: the object that ``work`` makes, in a thread."""
    pool = server_of(request).pool

    async def done() -> Mapping[str, Any]:
        async with pool.lease(model) as lease:
            return await pool.in_thread(work, lease.model)

    return await _whole(request, done(), headers_of(fields, ignored))


async def _whole(request: Request, work: Awaitable[Mapping[str, Any]], headers: Mapping[str, str]) -> Response:
    body = await unless_left(request, work)
    return Response(status_code=LEFT) if body is None else json_response(body, headers=headers)


LEFT = 499
"""The status of what nobody waits for, as nginx writes it."""


def headers_of(fields: Fields, others: Sequence[str] = ()) -> dict[str, str]:
    """Those of a response: what of the request had no effect, its fields and ``others``."""
    ignored = [*fields.ignored(), *others]
    return {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}
