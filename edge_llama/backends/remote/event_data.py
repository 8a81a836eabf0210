"""Server-sent events: bytes as they come become the data of one event after another."""

from collections.abc import Iterator

LONGEST = 8 << 20
"""Bytes of one event: a token's takes some hundred, with twenty alternatives some thousand."""


class BrokenStreamError(Exception):
    """What no such stream holds."""


class EventParser:
    """Comments and fields other than ``data`` are left out; an event that is cut off by the end is none."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        """What is there of a line without its end."""
        self._data: list[bytes] = []
        """The lines of an event that has not ended."""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that ``chunk`` ends. BrokenStreamError for one longer than :data:`LONGEST`."""
        *whole, rest = chunk.split(b"\n")
        for end in whole:
            line = b"".join((*self._begun, end)).removesuffix(b"\r")
            self._begun.clear()
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._grow(end)
            elif self._data and not line:
                yield b"\n".join(self._data)
                self._data.clear()
            if not self._data:
                self._size = 0
        if rest:
            self._begun.append(rest)
            self._grow(rest)

    def _grow(self, more: bytes) -> None:
        self._size += len(more)
        if self._size > LONGEST:
            raise BrokenStreamError(f"an event has more than {LONGEST:,} bytes")
