"""Where a server is, and the key for it: what may be written down of both, and what may not."""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from edge_llama.errors import OptionError

KEY_VARIABLE = "EDGE_LLAMA_REMOTE_API_KEY"
_API = "/v1"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_REMEDY = f"put the key into an environment variable: {KEY_VARIABLE}, or one that api_key_variable names"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, which holds no secret."""

    url: str
    """Up to where the API's endpoints begin: ``http://127.0.0.1:8000/v1``."""
    is_encrypted: bool
    is_here: bool
    """Whether it is this machine's own."""

    @property
    def root(self) -> str:
        """Where the endpoints are that are no part of OpenAI's API."""
        return self.url.removesuffix(_API)

    def __str__(self) -> str:
        return self.url


def parsed(text: str) -> Address:
    """The address that ``text`` means; without a path it gets ``/v1``.

    OptionError for what is none, and for one with a user, a password, a query or a fragment: nothing of those is shown,
    since it may be a key.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise OptionError("the server's URL can't be understood", remedy="as http://127.0.0.1:8000/v1") from error
    if parts.scheme not in ("http", "https") or not host or not text.isprintable() or set(text) & set(" \\<>\"'"):
        raise OptionError("the server's URL can't be understood", remedy="as http://127.0.0.1:8000/v1")
    _check_no_secret(parts, host)
    shown = f"[{host}]" if ":" in host else host
    place = shown if port is None else f"{shown}:{port}"
    path = parts.path.rstrip("/") or _API
    return Address(f"{parts.scheme}://{place}{path}", parts.scheme == "https", _is_loopback(host))


def _check_no_secret(parts: SplitResult, host: str) -> None:
    if "@" in parts.netloc:
        raise OptionError(
            f"the URL of {host} has a user or a password in it", remedy=f"leave it out, and {_KEY_REMEDY}"
        )
    if parts.query or parts.fragment:
        what = "a query" if parts.query else "a fragment"
        raise OptionError(f"the URL of {host} has {what}", remedy=f"leave it out; if it is a key, {_KEY_REMEDY}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def key_of(variable: str | None) -> str | None:
    """The key in the environment variable of this name; None: in :data:`KEY_VARIABLE`, if that is set.

    OptionError if it is not there, or can't be sent. No error shows the key, or what was given for the name: somebody
    might give the key itself.
    """
    if variable is not None and not _NAME.fullmatch(variable):
        raise OptionError("api_key_variable is no name of an environment variable", remedy=_KEY_REMEDY)
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if not key:
        if variable is not None:
            raise OptionError("the environment variable that api_key_variable names is not set", remedy="set it")
        return None
    if not (key.isascii() and key.isprintable()):
        raise OptionError(
            f"the key in {'that variable' if variable else KEY_VARIABLE} has characters that can't be sent",
            remedy="set it again",
        )
    return key
