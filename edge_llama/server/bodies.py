"""A request's body: read whole before anything is done with it, within limits, and JSON that all can work with."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from edge_llama.server.failures import ApiError
from edge_llama.server.settings import Limits

_LINGER_SECONDS = 5.0
"""That a refused request's body is still taken: a client that writes all of it first would miss the answer."""


class ClientLeftError(Exception):
    """Nobody waits for the answer."""


def announced(headers: Headers) -> int:
    """How many bytes a body is said to have; at least one where it comes in chunks."""
    return 1 if "transfer-encoding" in headers else int(headers.get("content-length") or 0)


def check_length(nbytes: int, limits: Limits) -> None:
    """ApiError for a body that is too long."""
    if nbytes > limits.body_bytes:
        text = f"the request's body has more than {limits.body_bytes:,} bytes, which is the limit"
        raise ApiError(413, text, code="request_too_large")


async def read(receive: Receive, limits: Limits, count: Callable[[int], None]) -> bytes:
    """All of it; ``count`` is called with the bytes of each part. What that raises, ApiError, ClientLeftError."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            is_more = True
            while is_more:
                part, is_more = await _part(receive)
                size += len(part)
                check_length(size, limits)
                count(len(part))
                parts.append(part)
    except TimeoutError:
        text = f"the request's body was not whole after {limits.body_seconds:g} seconds, which is the limit"
        raise ApiError(408, text, code="request_timeout") from None
    return b"".join(parts)


async def _part(receive: Receive) -> tuple[bytes, bool]:
    """The next part, and whether more comes."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message.get("body", b""), message.get("more_body", False)


async def discard(receive: Receive, limits: Limits) -> None:
    """Take what a client still sends of a body that nobody wants, for a short time."""
    with suppress(TimeoutError, ClientLeftError):
        async with asyncio.timeout(min(_LINGER_SECONDS, limits.body_seconds)):
            while (await _part(receive))[1]:
                pass


def check_json(body: bytes, headers: Headers, limits: Limits) -> None:
    """ApiError for a body that is no JSON, or of too many parts.

    Refused are broken UTF-8, numbers that JSON has not, halves of characters and more than 200 levels too. It is parsed
    again by the endpoint, which costs little beside an answer: what FastAPI says of such bodies names no place, and
    what Python's own parser lets through (NaN, halves of surrogate pairs, a thousand levels) fails later.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the request's body is compressed, which is not supported", code="no_json")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        told = f"{kind:.100}" if kind else "not given"
        raise ApiError(415, f"the request's Content-Type is {told}, expected application/json", code="no_json")
    if body.count(b",") >= limits.values and _least_values(body, limits.values) > limits.values:
        text = f"the request's body has more than {limits.values:,} values, which is the limit"
        raise ApiError(413, text, code="request_too_large")
    try:
        parsed = from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise ApiError(400, f"the request's body is no JSON: {error}", code="no_json") from None
    may_have = body.count(b"{") + body.count(b"[")
    if may_have > limits.objects and (count := _objects(parsed)) > limits.objects:
        text = f"the request's body has {count:,} objects and lists, at most {limits.objects:,} may be in one"
        raise ApiError(413, text, code="request_too_large")


def _least_values(body: bytes, limit: int) -> int:
    """At least so many values are in it, if it is JSON; it is not parsed, and commas within texts don't count."""
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    least = bare.count(b'"') // 4  # two around each text, and a name has a value
    return least if least > limit else 1 + sum(part.count(b",") for part in bare.split(b'"')[::2])


def _objects(value: object) -> int:
    """How many objects and lists are in it, at all levels."""
    count, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            count += 1
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return count


def replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives ``body`` at once, and then what comes after it."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay
