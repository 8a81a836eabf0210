"""Ids of texts that were encoded before: every turn of a conversation has all that went before it.

llama.cpp takes 0.3 ms for any text, since it compiles its regular expressions anew each time.
"""

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MOST = 16_000_000
"""Bytes of all texts and their ids together; the least recently used go first."""
_BESIDE = 300
"""Bytes of an entry beside them."""


class EncodedTexts:
    """A cache that threads may share, also a signal's handler within it."""

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str, Hashable], array[int]] = OrderedDict()
        self._hows: dict[Hashable, Hashable] = {}
        """Each once: they may be large."""
        self._lock = threading.RLock()
        self._nbytes = 0

    def get(self, text: str, how: Hashable, encode: Callable[[], list[int]]) -> list[int]:
        """What ``encode()`` gives for the text; ``how`` is all else that it depends on."""
        with self._lock:
            key = text, self._hows.setdefault(how, how)
            if (known := self._ids.get(key)) is not None:
                self._ids.move_to_end(key)
                return known.tolist()
        ids = encode()
        kept = array("i", ids)
        with self._lock:
            if key not in self._ids and _size(text, kept) <= _MOST:
                self._ids[key] = kept
                self._nbytes += _size(text, kept)
            while self._nbytes > _MOST:
                (gone, _), its = self._ids.popitem(last=False)
                self._nbytes -= _size(gone, its)
        return ids


def _size(text: str, ids: "array[int]") -> int:
    return sys.getsizeof(text) + ids.itemsize * len(ids) + _BESIDE
