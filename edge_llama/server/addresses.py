"""Names that a server is reached by, and the pages that may ask it: what a request's Host and Origin say.

A page of another site can have its own name point to this machine (DNS rebinding): its requests are then of the same
origin to the browser, and carry that name. So a server answers to names that it knows alone.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from edge_llama.errors import OptionError

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Authority:
    """A host and perhaps a port, written in the one way in which equal ones are the same."""

    host: str
    """A name in lower case without the root's dot, or an IP address; one of IPv4 in IPv6 is of IPv4."""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Authority | None":
        """``HOST`` or ``HOST:PORT``; None if it is neither."""
        match = _AUTHORITY.fullmatch(text)
        if match is None or (host := canonical(match[1])) is None:
            return None
        port = int(match[2]) if match[2] else None
        return cls(host, port) if port is None or 0 < port < 2**16 else None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page comes from."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Origin | None":
        """``SCHEME://HOST[:PORT]``; None if it is none, as ``null`` is."""
        match = _ORIGIN.fullmatch(text)
        authority = Authority.parse(match[2]) if match else None
        if match is None or authority is None:
            return None
        scheme = match[1].lower()
        return cls(scheme, authority.host, authority.port or _PORTS.get(scheme))

    def is_of(self, host: Authority) -> bool:
        """Whether a page of this origin was served from ``host``, which a request names."""
        default = _PORTS.get(self.scheme)
        return default is not None and (self.host, self.port) == (host.host, host.port or default)


def canonical(host: str) -> str | None:
    """A host's name or IP address (one of IPv6 in brackets, or alone) as :class:`Authority` has it; None for none."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None if host.startswith("[") else host.lower().removesuffix(".") or None
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_loopback(host: str) -> bool:
    """Whether a canonical host is this machine, to itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Hosts:
    """The names that a server answers to."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        """``bound``: what it listens to; ``allowed``: ``NAME`` or ``NAME:PORT`` each. OptionError for another."""
        self._bound = canonical(bound)
        self._allowed = frozenset(map(_allowed_host, allowed))

    def allow(self, given: Authority, reached: str | None) -> bool:
        """Whether a request may name the host ``given``, when the connection came to the address ``reached``.

        An address can't be rebound: a browser that names one is connected to it. Ports say nothing: a tunnel or a
        container has others.
        """
        here = {self._bound, canonical(reached) if reached else None}
        return (
            is_loopback(given.host)
            or given.host in here
            or given in self._allowed
            or Authority(given.host) in self._allowed
        )


def _allowed_host(text: str) -> Authority:
    if (authority := Authority.parse(text)) is None:
        raise OptionError(f"--allow-host {text}: expected NAME or NAME:PORT", remedy="for example box.lan")
    return authority


def allowed_origins(given: Iterable[str]) -> frozenset[Origin]:
    """Origins that were allowed by name. OptionError for what is none: a wildcard, or ``null``, which is anybody."""
    return frozenset(map(_allowed_origin, given))


def _allowed_origin(text: str) -> Origin:
    if (origin := Origin.parse(text)) is None:
        raise OptionError(
            f"--allow-origin {text}: expected SCHEME://HOST or SCHEME://HOST:PORT", remedy="as https://chat.example.org"
        )
    return origin
