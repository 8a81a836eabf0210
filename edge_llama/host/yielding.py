"""Threads that do a little between others that compute all the time."""

import os
import sys
from contextlib import suppress


def interrupt_nobody() -> None:
    """Have the calling thread wait for a core where others compute, in place of taking one from them.

    An engine's threads wait for each other a thousand times in a token: whoever takes a core from one of them for a
    moment holds up all. On Linux the thread becomes one of batches (which child processes don't inherit), elsewhere
    nothing changes.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox that forbids it
            os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
