"""What this machine has: its processor, the cores and the memory that are free, and what engines say of devices."""

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from edge_llama.host.processors import from_cpuinfo, from_sysctl


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor: what an engine's build and a measurement depend on."""

    name: str
    machine: str
    """As ``uname -m``: x86_64, arm64."""
    features: tuple[str, ...]
    """Instruction set extensions, as the system names them; empty where it doesn't say."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that an engine's build can use. ``kind``: cpu, gpu or accelerator."""

    name: str
    kind: str
    description: str
    free_bytes: int
    total_bytes: int
    backend: str = ""
    """The engine's name of what drives it: ``CUDA``."""
    is_integrated: bool = False
    """Whether it shares the processor's memory."""
    option: str = ""
    """How ``--device`` names it; "" for one that is used for nothing."""
    runs: str = ""
    """Which forms of models run there, or why none does."""


@cache
def cpu() -> Cpu:
    """The processor of this machine, as far as the system tells."""
    name, features = _told()
    return Cpu(name or platform.processor() or "unknown", platform.machine(), features)


def _told() -> tuple[str, tuple[str, ...]]:
    """A name and features; '' and () where the system has no text about them, or it can't be read."""
    try:
        if sys.platform == "linux":
            return from_cpuinfo(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "machdep.cpu.brand_string", "hw.optional"]
            return from_sysctl(subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        pass
    return "", ()


def cpu_threads() -> int:
    """Physical cores that this process may use: more threads than those only wait for each other."""
    allowed = logical_cores()
    return max(1, min(allowed, _physical_cores() or allowed))


def logical_cores() -> int:
    """Cores that this process may use, each thread of one for itself."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _physical_cores() -> int | None:
    return psutil.cpu_count(logical=False)  # it reads a file for each core, in milliseconds


def free_threads() -> int:
    """:func:`cpu_threads` less the cores that others keep busy at this moment, at least 1.

    llama.cpp's threads spin while they wait for each other: on two cores with two other busy processes, generation
    with two threads falls from 92 tokens/s to 1, with one thread to 36.
    """
    others = _lasting() - 1  # this thread itself is running while it asks
    return max(1, cpu_threads() - max(0, others))


def free_now() -> int:
    """:func:`free_threads` by one look, which takes 20 microseconds and counts what is about to sleep too."""
    return max(1, cpu_threads() - max(0, _runnable() - 1))


def _lasting() -> int:
    """The least of 4 samples of :func:`_runnable`, 1 ms apart.

    One sample counts what is about to sleep, such as our own threads after the last answer: on an idle machine half
    of the answers got one thread of two. The least of 4 was right 80 of 80 times.
    """
    least = _runnable()
    for _ in range(3):
        if least <= 1:  # this thread alone
            break
        time.sleep(0.001)
        least = min(least, _runnable())
    return least


def _runnable() -> int:
    """Threads that are running or ready to, machine-wide, now (Linux); elsewhere the load of the last minute."""
    try:
        return int(Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return round(psutil.getloadavg()[0]) + 1


def available_memory() -> int:
    """Bytes that can be had without swapping; a container's limit counts."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))
