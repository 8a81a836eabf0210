"""How the child is started: this interpreter, or a helper where a program has none.

A program that is frozen (PyInstaller and the like) or whose ``sys.executable`` is no Python ships a helper, an
executable of its own frozen from these lines, beside its own or where ``$EDGE_LLAMA_WORKER`` says:

    from edge_llama.isolation.child import main
    main()

Its command line is ``HELPER --shared N``; stdin and stdout are pipes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from edge_llama.errors import EngineError

WORKER_VARIABLE = "EDGE_LLAMA_WORKER"
_HELPER = "edge-llama-worker"
_CODE = """
import json, os, sys, threading, time
sys.path[:] = json.loads(sys.argv.pop(1))
def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(0.1)
    os.killpg(0, 9)
if os.name == "posix":
    threading.Thread(target=watch, daemon=True).start()
from edge_llama.isolation.child import main
main()
"""
"""Imports take a second where cores are busy: a parent that dies meanwhile is noticed."""


def command() -> list[str]:
    """The child's command line but for its arguments. EngineError if there is no program for it."""
    if given := os.environ.get(WORKER_VARIABLE):
        return [given]
    if not getattr(sys, "frozen", False) and sys.executable:
        # -P: nothing of the working directory is imported before the path is the host's own.
        return [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path)]
    beside = Path(sys.executable).with_name(_HELPER + (".exe" if os.name == "nt" else ""))
    if beside.is_file():
        return [str(beside)]
    raise EngineError(
        f"{beside}: no such file, and a frozen program has no interpreter to run a model in a process of its own",
        remedy=f"ship the helper, or say by {WORKER_VARIABLE} where it is",
    )


def start(shared: int) -> "subprocess.Popen[bytes]":
    """A child in a process group and session of its own, where no terminal's Ctrl-C comes.

    It inherits its three pipes and the descriptor ``shared``. EngineError if it can't be started.
    """
    try:
        return _start(command(), shared)
    except OSError as error:
        raise EngineError(
            f"no process for the model can be started: {error.filename or ''} {error.strerror or error}",
            remedy=f"close other programs, and see that {WORKER_VARIABLE}, if set, names a program",
        ) from error


def _start(words: list[str], shared: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else ggml starts a debugger when it gives up
    pipe = subprocess.PIPE
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        handle = msvcrt.get_osfhandle(shared)
        os.set_handle_inheritable(handle, True)
        try:
            return subprocess.Popen(  # noqa: S603 - as below
                [*words, "--shared", str(handle)],
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                env=environment,
                startupinfo=subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]}),
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
            )
        finally:
            os.set_handle_inheritable(handle, False)
    return subprocess.Popen(  # noqa: S603 - this interpreter, or what the user names
        [*words, "--shared", str(shared)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        bufsize=0,
        env=environment,
        pass_fds=(shared,),
        start_new_session=True,
    )
