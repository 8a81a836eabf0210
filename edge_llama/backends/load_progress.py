"""How far loading has come, for who asked by ``on_progress``: from ``open`` down to the engine that knows.

An engine of another package may tell it too; one that says nothing is one of which nobody knows how far it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[float], object]
"""Called with the part of the weights that is loaded, 0 to 1; what it raises shall end the loading."""
_listener: ContextVar[Listener | None] = ContextVar("edge_llama_load_progress", default=None)


@contextmanager
def told_to(listener: Listener | None) -> Iterator[None]:
    """While within, and in this thread, engines tell ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Listener | None:
    """Who wants to know; None: nobody."""
    return _listener.get()
