"""How the child is started: by :mod:`edge_llama.host.child`, with three pipes and a file that both processes see.

Its command line ends in ``--shared N``; stdin and stdout are pipes.
"""

import os
import subprocess
import sys

from edge_llama.errors import EngineError
from edge_llama.host import child

_MODULE = "edge_llama.isolation.child"


def start(shared: int) -> "subprocess.Popen[bytes]":
    """A child in a process group and session of its own, where no terminal's Ctrl-C comes.

    It inherits its three pipes and the descriptor ``shared``. EngineError if it can't be started.
    """
    words = child.command(_MODULE, "--shared", watch="parent")
    try:
        return _start(words, shared)
    except OSError as error:
        raise EngineError(
            f"no process for the model can be started: {error.filename or ''} {error.strerror or error}",
            remedy=f"close other programs, and see that {child.HELPER_VARIABLE}, if set, names a program",
        ) from error


def _start(words: list[str], shared: int) -> "subprocess.Popen[bytes]":
    environment = child.environment(GGML_NO_BACKTRACE="1")  # else ggml starts a debugger when it gives up
    pipe = subprocess.PIPE
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        handle = msvcrt.get_osfhandle(shared)
        os.set_handle_inheritable(handle, True)
        try:
            return subprocess.Popen(  # noqa: S603 - as below
                [*words, str(handle)],
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
    return subprocess.Popen(  # noqa: S603 - our own code, or what the user names
        [*words, str(shared)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        bufsize=0,
        env=environment,
        pass_fds=(shared,),
        start_new_session=True,
    )
