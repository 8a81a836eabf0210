"""How a server is set up."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take. Beyond it is a 4xx that names the limit."""

    body_bytes: int = 64 << 20
    objects: int = 50_000
    """Objects and lists in a body: to check each takes the server's one thread some microseconds."""
    values: int = 500_000
    """Values of all kinds in a body, token ids say: to read each takes the same thread a part of a microsecond."""
    header_bytes: int = 32 << 10
    images: int = 64
    """Images in one request."""
    choices: int = 16
    """``n``."""
    max_tokens: int | None = None
    """Tokens of an answer; None: as many as the context holds."""
    seconds: float = 3600.0
    """From a request's last byte to the end of its answer."""
    header_seconds: float = 15.0
    """From a connection, or the first byte of its next request, to the end of the request's headers."""
    body_seconds: float = 60.0
    """From there to the request's last byte."""
    requests: int = 256
    """At once, of all kinds."""
    held_bytes: int = 512 << 20
    """Of the bodies of all requests at once."""
    connections: int = 4096
    """Open at once, those that ask nothing too."""
    stored: int = 1000
    """Responses that are kept, in memory or as files; the least recently used make room."""
    stored_bytes: int = 256 << 20
    """The same, all together."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """See ``edge-llama serve --help``."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    """None: none is asked for."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside those of this machine's loopback and ``host``, that a request's Host header may have."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of pages, beside the server's own, that may ask."""
    store: Path | None = None
    """Where responses are kept; None: in memory alone."""
    limits: Limits = field(default_factory=Limits)
    keep_alive_seconds: float = 15.0
    """A stream that is silent for so long gets a comment, so that nobody between takes it for dead."""
    drain_seconds: float = 30.0
    """What running answers get after SIGTERM."""
