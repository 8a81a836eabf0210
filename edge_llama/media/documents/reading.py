"""A document's bytes to text, where need be in a process of its own: with a deadline, and a bound of memory.

The bytes go through its stdin, so that what is read is what was hashed, and JSON comes back. Where no process can be
had (:mod:`edge_llama.host.child`) a thread does it: the caller waits no longer than the deadline then
either, but what the thread takes is bounded by the readers' own limits alone.
"""

import json
import subprocess
import threading
from collections.abc import Callable

from edge_llama.errors import DocumentError, EdgeLlamaError, error_from_json
from edge_llama.host import child
from edge_llama.media.documents.kinds import Kind
from edge_llama.media.documents.limits import MAX_MEMORY, MAX_SECONDS, Extracted


def text_of(kind: Kind, data: bytes, name: str) -> Extracted:
    """What the kind's reader makes of the bytes of a file called ``name``. It raises what that raises.

    DocumentError as well for a file that takes too much time or memory to parse.
    """
    if len(data) < kind.apart_from:
        return kind.read(data, name)
    if not child.is_available():
        return _in_thread(lambda: kind.read(data, name), name)
    return _in_child(kind, data, name)


def _in_child(kind: Kind, data: bytes, name: str) -> Extracted:
    module = "edge_llama.media.documents.child"
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            child.command(module, kind.name, name, str(MAX_SECONDS), str(MAX_MEMORY), watch="none"),
            input=data,
            capture_output=True,
            check=False,
            timeout=MAX_SECONDS,
            env=child.environment(PYTHONIOENCODING="utf-8"),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except subprocess.TimeoutExpired as error:
        raise _too_long(name) from error
    except OSError as error:
        raise DocumentError(f"{name}: no process to parse it can be started: {error.strerror}") from error
    return _reply(done, name)


def _reply(done: "subprocess.CompletedProcess[bytes]", name: str) -> Extracted:
    try:
        said = json.loads(done.stdout)
    except ValueError as error:  # it died
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        if "MemoryError" in "".join(lines[-1:]):
            raise _too_large(name) from error
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = f": {lines[-1]}" if lines else ""
        raise DocumentError(
            f"{name}: the process that parsed it ended with {how}{last}", remedy="get it again, or save it once more"
        ) from error
    if "error" in said:
        raise error_from_json(said["error"])
    return Extracted(said["text"], tuple(said["notes"]))


def _in_thread(read: Callable[[], Extracted], name: str) -> Extracted:
    found: list[Extracted | BaseException] = []

    def work() -> None:
        try:
            found.append(read())
        except BaseException as error:  # it is raised where it is waited for
            found.append(error)

    thread = threading.Thread(target=work, name="document", daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if not found:
        raise _too_long(name)
    if isinstance(found[0], MemoryError):
        raise _too_large(name) from found[0]
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _too_long(name: str) -> EdgeLlamaError:
    return DocumentError(f"{name}: parsing it takes more than {MAX_SECONDS} s", remedy="give a part of it")


def _too_large(name: str) -> EdgeLlamaError:
    return DocumentError(
        f"{name}: parsing it takes more memory than {MAX_MEMORY >> 20:,} MiB", remedy="give a part of it"
    )
