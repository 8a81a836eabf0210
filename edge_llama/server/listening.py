"""Where a server listens. Nothing here needs more than Python: a port that is taken is told before anything loads."""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from edge_llama.errors import InputError, OptionError
from edge_llama.server.addresses import canonical, is_loopback

_BACKLOG = 1024
_WHY = {
    errno.EADDRINUSE: ("another program listens there", "give another --port, or 0 for any that is free"),
    errno.EACCES: ("this port is not for everybody", "give a --port from 1024 on"),
    errno.EADDRNOTAVAIL: ("this machine has no such address", "give one of its own as --host"),
}


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of ``host``, at one port; 0 is any that is free.

    ``::`` is every address of both kinds. Raises OptionError for a host that has no address, InputError for a place
    that can't be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--host {host}: it has no address ({error})", remedy="give a name or an address") from error
    listeners: list[socket.socket] = []
    with ExitStack() as opened:
        for family, _, _, _, address in dict.fromkeys(found):
            at = listeners[0].getsockname()[1] if listeners else port
            try:
                listeners.append(opened.enter_context(_listener(family, (address[0], at, *address[2:]))))
            except OSError as error:
                if listeners and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # localhost is there twice where IPv6 is switched off
                raise _unavailable(host, port, error) from error
        opened.pop_all()
    return listeners


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    # With the protocol's number, without which asyncio does not set TCP_NODELAY (base_events.py: _set_nodelay): each
    # small write would wait up to 40 ms for the acknowledgement of the last.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let another program take the place over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _unavailable(host: str, port: int, error: OSError) -> InputError:
    why, remedy = _WHY.get(error.errno or 0, (error.strerror or str(error), "give another --host or --port"))
    return InputError(f"{url(host, port)}: cannot listen there: {why}", remedy=remedy)


def url(host: str, port: int) -> str:
    """Where a client finds a server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def needs_key(listeners: Sequence[socket.socket]) -> bool:
    """Whether others than this machine's own users can reach one of them."""
    return not all(is_loopback(canonical(listener.getsockname()[0]) or "") for listener in listeners)
