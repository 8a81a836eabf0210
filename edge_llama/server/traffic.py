"""What goes on in a server now. Of its event loop's thread."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Requests that are being answered, and whether more are taken."""

    running: int = 0
    held_bytes: int = 0
    """Of the bodies of requests that are being answered."""
    is_draining: bool = False
    """The server is about to end: what runs is finished, and nothing more is taken."""

    @contextmanager
    def one_more(self) -> Iterator[Callable[[int], None]]:
        """While a request is answered; call what it gives with the bytes of its body, as they come."""
        held = 0

        def hold(nbytes: int) -> None:
            nonlocal held
            held += nbytes
            self.held_bytes += nbytes

        self.running += 1
        try:
            yield hold
        finally:
            self.running -= 1
            self.held_bytes -= held
