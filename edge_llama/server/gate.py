"""Who may ask: what a request's Host, Origin and key say. Nothing here waits."""

import hmac
import re
from collections.abc import Iterator, Mapping

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import Scope

from edge_llama.errors import OptionError
from edge_llama.server.addresses import Authority, Hosts, Origin, allowed_origins
from edge_llama.server.failures import ApiError
from edge_llama.server.settings import ServerSettings

HEALTH = "/health"
_STATIC = re.compile(r"/|/favicon\.ico|/page/[\w./-]+\.(?:html|css|js|svg|png|ico|woff2)")
"""The page's files, the same for all: a browser fetches them before anybody could give it a key."""
_FIELD_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_EXPOSED = "x-request-id, request-id, retry-after, edge-llama-ignored"
"""What an allowed page may read of a response's headers."""


class Gate:
    """The rules of one server."""

    def __init__(self, settings: ServerSettings) -> None:
        """OptionError for a host or an origin that is none, and for a key that no header can carry."""
        self._hosts = Hosts(settings.host, settings.allowed_hosts)
        self._origins = allowed_origins(settings.allowed_origins)
        self._key = None if settings.api_key is None else _key(settings.api_key)

    def host(self, headers: Headers, reached: str | None) -> Authority:
        """The host that a request names, whose connection came to the address ``reached``. ApiError for another's."""
        given = headers.get("host", "")
        host = Authority.parse(given)
        if host is None or not self._hosts.allow(host, reached):
            text = f"the server does not answer to the host {given!r:.100}: if it is yours, start it with --allow-host"
            raise ApiError(403, text, code="host_not_allowed")
        return host

    def origin(self, headers: Headers, host: Authority) -> Mapping[str, str]:
        """Headers that let the asking page read the response: none for the server's own. ApiError for any other."""
        told: dict[str, str] = {}
        for given in headers.getlist("origin"):
            origin = Origin.parse(given)
            if origin in self._origins:
                told = {"access-control-allow-origin": given, "access-control-expose-headers": _EXPOSED}
            elif origin is None or not origin.is_of(host):
                text = f"pages of {given!r:.100} may not ask: if it is yours, start the server with --allow-origin"
                raise ApiError(403, text, code="origin_not_allowed")
        return told

    def key(self, scope: Scope, headers: Headers) -> None:
        """ApiError where a key is wanted and none of those that were given is right."""
        if self._key is None or _is_open(scope):
            return
        given = [*headers.getlist("x-api-key"), *_bearers(headers.getlist("authorization"))]
        right = [hmac.compare_digest(key.encode("latin-1"), self._key) for key in given]
        if not any(right):
            text = "that is not the server's key" if given else "the server wants its key"
            text += ": send it as Authorization: Bearer KEY, or as x-api-key"
            raise ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _key(text: str) -> bytes:
    if not text or not all("!" <= char <= "~" for char in text):
        raise OptionError("--api-key: expected letters, digits and signs of ASCII, without blanks")
    return text.encode("ascii")


def _is_open(scope: Scope) -> bool:
    """Whether no key is asked for."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path == HEALTH or _STATIC.fullmatch(path) is not None)


def _bearers(values: list[str]) -> Iterator[str]:
    for value in values:
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            yield key.strip()


def is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks what a page may ask."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight(headers: Headers) -> Response:
    """What it is told, once the page's origin is known to be allowed."""
    told = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Max-Age": "600",
        "Vary": "Access-Control-Request-Headers, Access-Control-Request-Private-Network",
    }
    wanted = headers.get("access-control-request-headers", "")
    if _FIELD_NAMES.fullmatch(wanted):
        told["Access-Control-Allow-Headers"] = wanted
    if headers.get("access-control-request-private-network") == "true":
        told["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=told)
