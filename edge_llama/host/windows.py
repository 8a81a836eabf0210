"""Windows' rules of files, where they decide: open files stay, some names are devices, paths end at 259 characters.

Nothing here was run on Windows: tests on Linux impose the same rules (tests/windows_rules.py).
"""

import os
import sys
import time
from pathlib import Path

IS_WINDOWS = os.name == "nt"
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"
}
_FORBIDDEN = '<>:"|?*\\'
_LONGEST = 259
"""Characters of a path without the NUL at its end: MAX_PATH."""
_PAUSES = (0.05, 0.1, 0.2, 0.4)
"""Seconds between attempts: virus scanners and indexers open what was just written, and soon close it."""


class FileInUseError(PermissionError):
    """A file or folder can't be renamed or replaced since a program has it, or something in it, open."""


def move(path: Path, target: Path) -> None:
    """Rename ``path`` to ``target``, in place of a file that is there. OSError; FileInUseError on Windows alone."""
    for pause in _PAUSES if IS_WINDOWS else ():
        try:
            path.replace(target)
            return
        except PermissionError:
            time.sleep(pause)
    try:
        path.replace(target)
    except PermissionError as error:
        if not IS_WINDOWS:
            raise
        raise FileInUseError(
            error.errno,
            "a program has it open, and Windows replaces no open file: close what uses it (a chat, a server)",
            str(target),
        ) from error


def why_impossible(path: Path, *written: Path) -> str:
    """Why Windows can't have a file or folder ``path``, with what is ``written`` on the way; empty if it can.

    Elsewhere any name will do.
    """
    if not IS_WINDOWS:
        return ""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - no link is followed, and '..' goes
    for name in absolute.parts[1:]:
        if why := why_no_name(name):
            return why
    longest = max((str(absolute), *map(str, written)), key=len)
    if len(longest) > _LONGEST and not _takes_long_paths():
        return (
            f"{len(longest):,} characters ({longest}), where Windows takes {_LONGEST}: shorten it, or have an "
            "administrator set LongPathsEnabled to 1"
        )
    return ""


def why_no_name(name: str) -> str:
    """Why no file can be called so on Windows, whatever system this is; empty if one can."""
    stem = name.partition(".")[0].rstrip(" ").upper()
    if stem in _DEVICES:
        return f"{stem} is a device's name on Windows, and no file's"
    if found := [char for char in name if char in _FORBIDDEN or ord(char) < 32]:
        return f"a name on Windows has no {found[0]!r}"
    if name.endswith((".", " ")):
        return f"Windows leaves out the {name[-1]!r} at the end of a name"
    return ""


def _takes_long_paths() -> bool:
    if sys.platform != "win32":
        return False
    import winreg  # noqa: PLC0415 - only Windows has it

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:
        return False
