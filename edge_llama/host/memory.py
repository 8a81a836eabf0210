"""The memory of this process."""

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies below any living byte, half a megabyte to 50 of it."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
