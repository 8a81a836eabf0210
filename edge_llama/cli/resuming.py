"""Work that is stopped and goes on with the next run of the same command."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_llama.cli.terminal.console import note


@contextmanager
def resumable(partial: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM both stop the work where it is, and say how it goes on from what lies at ``partial``."""

    def terminated(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if partial.exists():
            what = "the folder " if partial.is_dir() else ""
            note(f"stopped: the same command goes on from here; to give it up, remove {what}{partial}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
