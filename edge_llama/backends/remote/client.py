"""HTTP to one server: asked again while it is not there, bounded in all that comes back, closed at once.

Only the server's own address is asked. Redirects are not followed, and what the environment says of proxies, passwords
(``.netrc``) and the like is not heeded: prompts and the key go where the caller said, and nowhere else.
"""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import httpx

from edge_llama.backends.base import installed_version
from edge_llama.backends.remote.address import KEY_VARIABLE, Address
from edge_llama.backends.remote.event_data import BrokenStreamError, EventParser
from edge_llama.errors import EdgeLlamaError, OptionError, RemoteError, printable

_log = logging.getLogger(__name__)
_DELAYS = (0.25, 1.0, 3.0)
"""Seconds before each try after the first."""
_LONGEST_WAIT = 20.0
"""Seconds that a server may ask for before the next try."""
_CONNECT, _WRITE, _LOOK = 10.0, 60.0, 60.0
SILENCE = 600.0
"""Seconds without a byte, after which a server is taken for dead: long prompts are read, and models loaded, in silence.

What is only looked up has less: :data:`_LOOK`."""
_LONGEST_BODY = 8 << 20
_LONGEST_ERROR = 64 << 10
_SHOWN = 300
"""Characters of a server's own words in an error."""
_COME_AGAIN = (429, 503)
_REFUSED = (400, 404, 405, 413, 422)
_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""A machine that vanished is noticed within a minute, where the system can be told so."""
_DONE = b"[DONE]"
_SECONDS_FOR_REST = 1.0


class RefusedError(OptionError):
    """A server said that the request is wrong: ``status``, as HTTP numbers it."""

    def __init__(self, url: str, problem: str, status: int, *, remedy: str = "") -> None:
        super().__init__(f"{url}: {problem}", remedy=remedy)
        self.status = status


class Client:
    """Asks one server. Used in one event loop, by any number of tasks."""

    def __init__(self, address: Address, key: str | None) -> None:
        """OptionError for a name that no host can have."""
        try:
            httpx.URL(address.url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise OptionError(f"{address}: {error}", remedy="as http://127.0.0.1:8000/v1") from error
        self.address = address
        self._key = key
        headers = {"User-Agent": f"edge-llama/{installed_version('edge-llama')}", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
            if not address.is_encrypted and not address.is_here:
                _log.warning("%s: the key and all texts go there unencrypted: use https in a network", address)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=30)
        transport = httpx.AsyncHTTPTransport(
            verify=_certificates() if address.is_encrypted else True,
            trust_env=False,
            limits=limits,
            socket_options=_socket_options(),
        )
        self._http = httpx.AsyncClient(headers=headers, transport=transport, trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        """Give up all connections."""
        await self._http.aclose()

    async def get(self, url: str) -> Any:
        """The JSON at ``url``, one of this server's. RemoteError or OptionError if there is none."""
        return await self._json("GET", url, None)

    async def post(self, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON that ``url`` answers ``body`` with, as :meth:`get`."""
        return await self._json("POST", url, body)

    async def events(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """The objects of the event stream that ``url`` answers ``body`` with, up to ``[DONE]`` or its end.

        Closing the generator closes the connection.
        """
        response = await self._answered("POST", url, body)
        try:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise self.error(f"answers with {kind[:60] or 'no type'}, expected an event stream")
            parser = EventParser()
            async with aclosing(self._bytes(response)) as chunks:
                async for chunk in chunks:
                    for data in parser.feed(chunk):
                        if data == _DONE:
                            await _rest(chunks)
                            return
                        yield self._parsed(data)
        except BrokenStreamError as error:
            raise self.error(f"sends what is not understood: {error}") from error
        finally:
            await response.aclose()

    def error(self, problem: str, *, status: int | None = None, remedy: str = "") -> RemoteError:
        """What is raised of this server; whatever it said, the key is not in it."""
        return RemoteError(str(self.address), self._without_key(problem), status=status, remedy=remedy)

    async def _json(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        response = await self._answered(method, url, body)
        try:
            return self._parsed(await self._whole(response, _LONGEST_BODY))
        finally:
            await response.aclose()

    async def _answered(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """A response of status 200, whose body is still to be read; asked for again where that may help."""
        content = None if body is None else json.dumps(body).encode()
        for delay in (*_DELAYS, None):
            wait, problem = await self._try(method, url, content, delay)
            if isinstance(problem, httpx.Response):
                return await self._checked(problem)
            if delay is None or wait is None:
                raise problem
            _log.info("%s; asked again in %.2f s", problem, wait)
            await asyncio.sleep(wait)
        raise AssertionError

    async def _try(
        self, method: str, url: str, content: bytes | None, delay: float | None
    ) -> tuple[float | None, httpx.Response | EdgeLlamaError]:
        """A response of status 200; or what went wrong, and after how many seconds another try is worth it, if any."""
        headers = {} if content is None else {"Content-Type": "application/json"}
        timeout = httpx.Timeout(connect=_CONNECT, read=SILENCE if content else _LOOK, write=_WRITE, pool=None)
        request = self._http.build_request(method, url, content=content, headers=headers, timeout=timeout)
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if _is_of_certificate(error):
                return None, self._distrusted(error)
            return delay, self._unreachable(error)
        except httpx.TransportError as error:  # a connection that was kept from before may have been given up there
            is_first = delay == _DELAYS[0] and not isinstance(error, httpx.TimeoutException)
            return delay if is_first else None, self._broken(error)
        if response.status_code == httpx.codes.OK:
            return None, response
        try:
            problem = await self._refusal(response)
        finally:
            await response.aclose()
        wait = _retry_after(response, delay) if response.status_code in _COME_AGAIN else None
        return wait, problem

    async def _bytes(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        except httpx.TransportError as error:
            raise self._broken(error) from error

    async def _whole(self, response: httpx.Response, most: int) -> bytes:
        body = bytearray()
        async with aclosing(self._bytes(response)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise self.error(f"sends more than the {most:,} bytes that an answer may have")
        return bytes(body)

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.error(f"sends what is no JSON: {error}") from error

    async def _checked(self, response: httpx.Response) -> httpx.Response:
        """RemoteError for one that is compressed: what bounds its bytes would not bound what they become."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise self.error(f"sends {encoding[:60]} although it was told not to compress")
        return response

    def _unreachable(self, error: Exception) -> RemoteError:
        why = str(error) or "no answer"
        return self.error(f"can't be reached: {why[:_SHOWN]}", remedy="see to it that the server runs at this address")

    def _distrusted(self, error: Exception) -> RemoteError:
        return self.error(
            f"its certificate is not trusted: {str(error)[:_SHOWN]}",
            remedy="name the file of the authority that issued it in SSL_CERT_FILE, if you trust that",
        )

    def _broken(self, error: httpx.TransportError) -> RemoteError:
        if isinstance(error, httpx.ReadTimeout):
            return self.error("was silent for too long", remedy="see whether the server still works")
        why = str(error) or type(error).__name__
        return self.error(f"the connection broke: {why[:_SHOWN]}", remedy="see whether the server died")

    async def _refusal(self, response: httpx.Response) -> EdgeLlamaError:
        """What a status other than 200 means."""
        status = response.status_code
        if 300 <= status < 400:
            target = response.headers.get("location", "")[:_SHOWN]
            return self.error(
                f"answers that the API is elsewhere ({status}): {target}",
                status=status,
                remedy="nobody else is asked: give that address, if you trust it",
            )
        said = self._without_key(_said(await self._refused_body(response)))
        told = f"{status}: {said}" if said else str(status)
        if status in (401, 403):
            return RefusedError(
                str(self.address),
                f"refuses the key, or asks for one ({told})",
                status,
                remedy=f"put it into the environment variable {KEY_VARIABLE}, or name one (--api-key-variable)",
            )
        if status in _REFUSED:
            return RefusedError(str(self.address), f"refuses the request ({told})", status)
        return self.error(f"failed ({told})", status=status)

    async def _refused_body(self, response: httpx.Response) -> bytes:
        """As far as it comes: it only says why."""
        body = bytearray()
        try:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LONGEST_ERROR:
                    break
        except httpx.TransportError as error:
            _log.debug("%s: %s", self.address, error)
        return bytes(body[:_LONGEST_ERROR])

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


async def _rest(chunks: AsyncIterator[bytes]) -> None:
    """The end of a stream, if it comes at once: then its connection serves the next request."""
    with suppress(TimeoutError, RemoteError):
        async with asyncio.timeout(_SECONDS_FOR_REST):
            async for _ in chunks:
                pass


def _said(body: bytes) -> str:
    """A server's own words about an error, whatever form they have; one line."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        found = found.get(key, found) if isinstance(found, dict) else found
    text = found if isinstance(found, str) else json.dumps(found)
    return printable(" ".join(text.split())[:_SHOWN])


def _retry_after(response: httpx.Response, delay: float | None) -> float | None:
    """Seconds before another try: as the server asks, if that is not too long."""
    asked = response.headers.get("retry-after", "")
    if delay is None or not asked.isdigit():
        return delay
    return max(delay, float(asked)) if len(asked) < 6 and float(asked) <= _LONGEST_WAIT else None


def _is_of_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _certificates() -> ssl.SSLContext:
    """The system's, by which ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are heeded, and those that come with httpx."""
    import certifi  # noqa: PLC0415 - for https alone

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    known = [(getattr(socket, name, None), value) for name, value in _ALIVE]
    return options + [(socket.IPPROTO_TCP, name, value) for name, value in known if name is not None]
