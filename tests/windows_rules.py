"""Windows' rules of files, imposed on this process on Linux: what is open or mapped here is not moved or deleted."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_llama.host import windows

_TEXT = "The process cannot access the file because it is being used by another process"


def open_files() -> Iterator[str]:
    """Files that this process has open or mapped."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)  # noqa: PTH115 - a text
        except OSError:  # that of the listing itself
            continue
        if Path(target).is_file():
            yield target
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        yield from line.split(maxsplit=5)[5:]


def is_open(path: str) -> bool:
    """Whether the file, or one in the folder, is open."""
    real = os.path.realpath(path)
    return any(file == real or file.startswith(real + os.sep) for file in open_files())


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of one or two paths, refused for those that are open."""

    def call(*paths: Any, dir_fd: int | None = None, **options: Any) -> Any:
        if dir_fd is not None:
            options["dir_fd"] = dir_fd
        folder = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        for path in paths:
            if is_open(whole := str(folder / os.fspath(path))):
                raise PermissionError(errno.EACCES, _TEXT, whole)
        return function(*paths, **options)

    return call


@contextmanager
def imposed() -> Iterator[None]:
    """Within, this process keeps Windows' rules: of open files, and of names (:mod:`edge_llama.host.windows`)."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "remove", "rmdir"):
            patch.setattr(os, name, _checked(getattr(os, name)))
        patch.setattr(windows, "IS_WINDOWS", True)
        patch.setattr(windows, "_PAUSES", (0.01, 0.05, 0.2))
        yield
