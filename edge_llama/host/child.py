"""Child processes that run our own code: how one is started, and what it does first.

A child meets a file before its parent does, holds a model that is isolated, or compiles. What starts it, in this order:

- the program that ``$EDGE_LLAMA_HELPER`` names, whose all is a call of :func:`main`: for hosts that embed Python, and
  for other tools that freeze than PyInstaller;
- this interpreter, with this very file: where the program is not frozen;
- ``edge-llama-helper`` beside the program, frozen of the same two lines;
- the frozen program itself, if it said that it answers the reserved first argument: the runtime hook for PyInstaller
  in ``edge_llama/__pyinstaller`` does both, before a line of the program runs. So no child can become a second program.

Where none of these is there (:func:`is_available`), there are no children. This file imports nothing of ours at first:
a child looks for its parent before it takes a second for imports.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Literal, NoReturn

RESERVED = "--edge-llama-child"
"""The first argument of a frozen program, or of a helper, that shall be a child."""
HELPER_VARIABLE = "EDGE_LLAMA_HELPER"
ANSWERS = "edge_llama_answers_reserved_argument"
"""The attribute of ``sys`` by which a frozen program says so."""
_HELPER = "edge-llama-helper"
_GENERATION = "EDGE_LLAMA_CHILD_GENERATION"
_MOST_GENERATIONS = 8
"""Ours are three at most. A helper that is no helper, but the whole program again, would go on for ever."""
Watch = Literal["pipe", "parent", "none"]
"""How a child notices the end of its parent: by its stdin, a pipe that nobody writes to, by looking who it is, or not,
where it has bounded its own time."""


def is_available() -> bool:
    """Whether a child can be started: False in a frozen program without a helper."""
    found = _program() is not None
    if not found and getattr(sys, "frozen", False):
        _warn()
    return found


def command(module: str, *arguments: str, watch: Watch) -> list[str]:
    """The command line of a child that calls ``main(*arguments)`` of ``module``. EngineError if there is no program."""
    words = _program()
    if words is None:
        from edge_llama.errors import EngineError  # noqa: PLC0415 - see above

        raise EngineError(
            f"{_beside()}: no such file, and a frozen program has no interpreter for a process of its own",
            remedy="freeze it by PyInstaller with edge-llama's hook, ship that helper, or say by "
            f"{HELPER_VARIABLE} where it is",
        )
    return [*words, watch, module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """What a child inherits, and ``more``."""
    return {**os.environ, _GENERATION: str(_generation() + 1), **more}


def environment_of_others() -> dict[str, str]:
    """What a program that is not ours inherits: of a frozen one not where its own libraries lie."""
    found = dict(os.environ)
    for name in ("LD_LIBRARY_PATH", "LIBPATH"):  # PyInstaller keeps what was there before under another name
        before = found.pop(f"{name}_ORIG", None)
        if before is not None:
            found[name] = before
        elif getattr(sys, "frozen", False):
            found.pop(name, None)
    return found


def main() -> NoReturn:
    """The child: do what the command line says, and end. The whole of a helper is a call of this."""
    if sys.argv[1:2] != [RESERVED] or len(sys.argv) < 5:
        sys.exit("this program is started by edge-llama")
    path, watch, module, *arguments = sys.argv[2:]
    _WATCHES[watch]()
    if path:  # the parent's, whose packages these are
        sys.path[:] = json.loads(path)
    try:
        import_module(module).main(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)  # nothing is left to a frozen program's own ways, such as a window that tells of it
    sys.exit(0)


def _program() -> list[str] | None:
    """The child's command line up to what it shall do; None if there is no program for it."""
    if _generation() >= _MOST_GENERATIONS:
        return None
    if given := os.environ.get(HELPER_VARIABLE):
        return [given, RESERVED, ""]
    if not sys.executable:
        return None
    if not getattr(sys, "frozen", False):
        # -P: nothing of the working directory is imported before the path is the parent's own.
        return [sys.executable, "-P", __file__, RESERVED, json.dumps(sys.path)]
    if _beside().is_file():
        return [str(_beside()), RESERVED, ""]
    return [sys.executable, RESERVED, ""] if getattr(sys, ANSWERS, False) else None


def _beside() -> Path:
    return Path(sys.executable or "program").with_name(_HELPER + (".exe" if os.name == "nt" else ""))


def _generation() -> int:
    """How many children stand between this process and the program."""
    text = os.environ.get(_GENERATION, "")
    return int(text) if text.isdecimal() else 0


@cache
def _warn() -> None:
    import logging  # noqa: PLC0415 - for once

    logging.getLogger("edge_llama").warning(
        "this program has no helper: no file, engine or device is tried in a child process before it is used here"
    )


def _watch_pipe() -> None:
    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _watch_parent() -> None:
    """On POSIX, for a child in a process group of its own; elsewhere its pipe is all there is."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        os.killpg(0, 9)

    if os.name == "posix":
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


_WATCHES: Mapping[str, Callable[[], None]] = {"pipe": _watch_pipe, "parent": _watch_parent, "none": lambda: None}

if __name__ == "__main__":
    main()
