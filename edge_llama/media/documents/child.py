"""The process that parses one document: its bytes come through stdin, its text goes to stdout as JSON.

It bounds itself: beyond its memory it gets MemoryErrors, beyond its processor time the system ends it, also where its
parent was killed.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_llama.errors import EdgeLlamaError, error_to_json
from edge_llama.host.regular_files import content_of
from edge_llama.media.documents.kinds import kind_named


def main(kind: str, name: str, seconds: str, memory: str) -> None:
    """Parse a document of this kind, which errors call ``name``; within ``seconds``, and ``memory`` in bytes."""
    _bound(int(seconds), int(memory))
    logging.disable()  # a warning for each broken object would fill the parent's memory
    data = sys.stdin.buffer.read()
    try:
        found = kind_named(kind).read(data, name)
        said: dict[str, Any] = {"text": found.text, "notes": found.notes}
    except EdgeLlamaError as error:
        said = {"error": error_to_json(error)}
    sys.stdout.buffer.write(json.dumps(said).encode())


def _bound(seconds: int, memory: int) -> None:
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415

    # The parent's deadline comes first. Libraries may have reserved gigabytes that they never touch.
    memory += _address_space()
    limits = ((resource.RLIMIT_CPU, seconds + 5), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0))
    for which, limit in limits:
        with suppress(ValueError, OSError):  # a lower limit is set already, or (macOS) none can be
            resource.setrlimit(which, (limit, limit))


def _address_space() -> int:
    """Bytes that this process has by now, where the system says so."""
    try:
        pages = int(content_of(Path("/proc/self/statm")).split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
