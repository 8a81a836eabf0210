"""How the suite runs: signals of its child processes, cores of its workers, tests alone, and nothing left running.

A worker of pytest-xdist, and whatever it starts, sees only its share of the cores: threads of two engines on one core
would wait for each other. A test marked ``alone`` (it measures time, or loads all cores) waits until every other worker
is between two tests, keeps them there, and has all cores.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
from filelock import FileLock

if sys.platform != "win32":
    import fcntl

ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_SECONDS_TO_END = 5
_locks = pytest.StashKey[tuple[IO[bytes], IO[bytes]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: measures time or loads all cores: no other test runs meanwhile")
    _give_children_default_signals()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of hundreds of children compiles all our sources
    if _is_worker():
        _take_cores(_share())


def _give_children_default_signals() -> None:
    """Whatever a shell's background or nohup ignores would be ignored by all children, and tests wait for ever.

    A handler, unlike ignoring, is not inherited by a new program.
    """
    handlers: dict[str, Callable[..., object]] = {
        "SIGINT": signal.default_int_handler,  # Python's own where it is not ignored
        "SIGHUP": lambda *_: None,  # the suite itself goes on ignoring these
        "SIGQUIT": lambda *_: None,
        "SIGTERM": lambda *_: None,
    }
    for name, handler in handlers.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Modules and thousands of cases stay: the garbage collector, which searched them again and again, forgets them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The top's files first: they ask whole models, and one that came last would leave the other workers idle."""
    items.sort(key=lambda item: item.path.parent != config.rootpath / "tests")


def _is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def _share() -> list[int]:
    """This worker's cores; all of them where there are fewer than workers."""
    number, count = os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    return ALL_CORES[int(number) :: count] or ALL_CORES


def _take_cores(cores: list[int]) -> None:
    if cores:  # empty where the system knows no such thing
        os.sched_setaffinity(0, cores)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the time limit: waiting is not counted
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not _is_worker() or sys.platform == "win32":
        return (yield)
    is_alone = item.get_closest_marker("alone") is not None
    with _turn(item.config, is_alone):
        _take_cores(ALL_CORES if is_alone else _share())
        return (yield)


@contextmanager
def _turn(config: pytest.Config, is_alone: bool) -> Iterator[None]:
    """Hold the machine, alone or with others. Who waits for it holds the door, so that nobody goes in before."""
    if _locks not in config.stash:
        folder = _folder_of_run(config._tmp_path_factory)
        config.stash[_locks] = (folder / "door").open("wb"), (folder / "machine").open("wb")
    door, machine = config.stash[_locks]
    fcntl.flock(door, fcntl.LOCK_EX)
    fcntl.flock(machine, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
    fcntl.flock(door, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(machine, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """A file of tests leaves no process running."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        children = psutil.Process().children(recursive=True)
        if left := psutil.wait_procs(children, timeout=_SECONDS_TO_END)[1]:
            told = [" ".join(child.cmdline())[:300] for child in left]
            for child in left:
                child.kill()
            pytest.fail(f"{item.path} leaves processes running: {told}", pytrace=False)
    return result


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What ``make`` writes at a path of this name: the first worker that needs it makes it, the others find it."""
    folder = _folder_of_run(factory)
    path, done = folder / name, folder / f"{name}.done"
    with FileLock(folder / f"{name}.lock"):
        if not done.exists():
            make(path)
            done.touch()
    return path


def _folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder, the same for all workers."""
    base = factory.getbasetemp()
    folder = (base.parent if _is_worker() else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder
