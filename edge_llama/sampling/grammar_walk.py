"""A walk through what a grammar allows, before a model goes there: llguidance lets some run into a dead end.

It takes a token as long as the grammar's rules go on, and finds only then that no text fits the next part: keys by a
pattern of which all are named already, for one. Every branch can't be followed; of a string one content is tried, and
what begins alike is followed once.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_PLACES = 1500
_SECONDS = 0.25  # of processor time: what takes longer goes on without
_TAIL = 12  # characters: places with the same of these before them, and the same choices, are one
_WIDE = 20  # more choices than these are the inside of a string
_FEW = 3
_BYTES = frozenset(range(256))
_BLANKS = frozenset(b" \n\r\t")
_DIGITS = frozenset(b"0123456789")
_QUOTE = ord('"')
_OPENING, _CLOSING = b"{[", b'"}],'
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _Place:
    matcher: Any
    text: bytes = b""
    shape: bytes = b""
    """The text's end, with one digit for many and one character for equal ones."""
    run: int = 0
    """How many these are at its end."""

    def after(self, byte: int) -> "_Place":
        """The place that ``byte`` leads to."""
        matcher = self.matcher.deep_copy()
        matcher.consume_token(byte)
        text = self.text + bytes((byte,))
        letter = b"0" if byte in _DIGITS else text[-1:]
        if self.shape.endswith(letter):
            return _Place(matcher, text, self.shape, self.run + 1)
        return _Place(matcher, text, (self.shape + letter)[-_TAIL:], 1)


def dead_end(matcher: Any) -> str | None:
    """The end of a text that is allowed and that nothing completes, or None if no such was met.

    ``matcher`` is llguidance's, at its beginning, over the 256 bytes and an end token after them.
    """
    until = time.thread_time() + _SECONDS
    waiting = deque([_Place(matcher)])  # short texts first: repetitions are long
    met: set[tuple[bytes, bytes, int]] = set()
    while waiting and len(met) < _MOST_PLACES and time.thread_time() < until:
        place = waiting.popleft()
        bits = place.matcher.compute_bitmask()
        if is_stuck(place.matcher):
            return place.text.decode("utf-8", "replace").rstrip()[-_SHOWN:]
        signature = (bits, place.shape, place.run)
        if signature in met or place.matcher.is_error() or place.matcher.is_stopped():
            continue
        met.add(signature)
        allowed = frozenset(map(int, np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))))
        waiting += map(place.after, _choices(allowed, place))
    return None


def is_stuck(matcher: Any) -> bool:
    """Whether the matcher's error, after it was asked for a mask, is that nothing can follow."""
    return bool(matcher.is_error()) and matcher.get_error().strip().startswith("NoExtension")


def _choices(allowed: frozenset[int], place: _Place) -> list[int]:
    """Which bytes to try. Blanks only where nothing else can be."""
    following = (allowed & _BYTES) - _BLANKS
    if not following:
        return list(allowed) if allowed <= _BLANKS else []
    closing = [byte for byte in _CLOSING if byte in following]
    if len(following) > _WIDE:  # within a string: one letter, more where they must be
        letter = ord("a") if ord("a") in following else min(following)
        is_enough = _QUOTE in following and place.text[-1:] == bytes((letter,))
        return [_QUOTE] if is_enough else [letter, *(closing[:1] if _QUOTE in following else [])]
    others = sorted(following.difference(closing, _DIGITS))
    if place.run >= _FEW and place.shape[-1] in _OPENING:
        others = [byte for byte in others if byte != place.shape[-1]]
    if len(others) > _FEW and place.text[-1:] != b'"':
        others = [others[0], others[len(others) // 2], others[-1]]
    digits = sorted(following & _DIGITS)
    if place.shape.endswith(b"0"):  # one digit more only where a number can't end
        digits = digits[:1] if len(following) == len(digits) else []
    return [*closing, *digits[:1], *digits[1:][-1:], *others]
