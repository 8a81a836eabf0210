"""The process of a model that is open with ``isolate=True``: what :mod:`edge_llama.host.child` calls in it.

Its stdin and stdout are pipes to the parent (:mod:`edge_llama.isolation.frames`); it ends when its parent does. The
first frame says what to open. Whatever native code prints goes to stderr.

    --shared N    the number of the descriptor (Windows: of the handle) of the file that both processes see
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from edge_llama.errors import EdgeLlamaError, error_to_json
from edge_llama.isolation import frames, wire
from edge_llama.isolation.service import Begun, Blob, Service
from edge_llama.model import Model

_GLANCE = 0.25
"""Seconds between two looks at whether the parent lives, where a fork of it keeps the pipe open."""


def main(*arguments: str) -> None:
    """Serve the parent until it ends or says so. It does not return."""
    incoming, outgoing = _take_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent, which tells what it means
    _leave_no_core()
    _Server(incoming, outgoing, _shared(arguments)).serve()


def _take_pipes() -> tuple[int, int]:
    """Descriptors of the pipes from and to the parent; nobody else reads or writes there from here on."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _shared(arguments: Sequence[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "--shared":
        sys.exit("this program is started by edge-llama: edge_llama.open(..., isolate=True)")
    number = int(arguments[1])
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        return msvcrt.open_osfhandle(number, os.O_RDWR)
    os.set_inheritable(number, False)
    return number


def _leave_no_core() -> None:
    """A death is told to the parent, who goes on; a core as large as the model would fill the disk."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _die() -> None:
    """End at once, with what this process has started."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def _dying() -> Iterator[None]:
    """What goes wrong within ends the process: its parent would wait for ever."""
    try:
        yield
    except BrokenPipeError:  # the parent is gone
        _die()
    except BaseException:
        traceback.print_exc()
        _die()


class _Server:
    """Three threads besides the engine's: one reads, one writes, one looks for the parent; and one for each call."""

    def __init__(self, incoming: int, outgoing: int, shared: int) -> None:
        self._incoming = os.fdopen(incoming, "rb")
        self._outgoing = outgoing
        self._shared = shared
        self._told: SimpleQueue[bytes | int | None] = SimpleQueue()
        """Frames; numbers of answers, each for a piece more; None at the end."""
        self._opening: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._service: Service | None = None
        self._begun: dict[int, Begun] = {}
        self._doing: set[int] = set()
        self._cancelled: set[int] = set()
        self._is_closing = threading.Event()

    def serve(self) -> None:
        """Open what the parent says, and do what it asks for."""
        for work in (self._read, _watch_parent):
            threading.Thread(target=work, daemon=True).start()
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        self._open(self._opening.get())
        self._told.put(None)
        writer.join()
        os._exit(0)  # what is to be freed is: nothing of native code shall run at exit

    def _open(self, fields: Mapping[str, Any]) -> None:
        _log_to_parent(self._tell, fields["log_level"])
        opening = fields["open"]
        options = {**opening["options"], "on_progress": self._loaded if fields["tells"] else None}
        try:
            with Model(opening["model"], **options) as model:
                self._service = Service(model, self._shared)
                self._tell({"opened": self._service.facts.to_json()})
                self._is_closing.wait()
        except BaseException as error:  # the parent waits for this
            self._tell({"failed": error_to_json(error)})

    def _loaded(self, fraction: float) -> None:
        self._tell({"loaded": fraction})

    def _tell(self, fields: Mapping[str, Any], blob: bytes = b"") -> None:
        self._told.put(frames.frame(fields, blob))

    def _read(self) -> None:
        with _dying():
            while found := frames.read(self._incoming):
                self._take(found[0])
            _die()

    def _take(self, fields: dict[str, Any]) -> None:
        if "open" in fields:
            self._opening.put(fields)
        elif "cancel" in fields:
            self._cancel(fields["cancel"])
        elif "close" in fields:
            self._is_closing.set()
        else:
            assert self._service  # noqa: S101 - the parent waits for it
            self._service.forget(fields["forget"])
            self._doing.add(fields["call"])
            threading.Thread(target=self._do, args=(fields, self._service), daemon=True).start()

    def _cancel(self, number: int) -> None:
        if number in self._doing:
            self._cancelled.add(number)  # before one looks: it may just be beginning
        if begun := self._begun.get(number):
            begun.generation.cancel()

    def _do(self, fields: dict[str, Any], service: Service) -> None:
        number = fields["call"]
        try:
            found = service.call(fields["name"], fields["given"])
            if isinstance(found, Begun):
                self._begin(number, found)
            elif isinstance(found, Blob):
                self._tell({"reply": number, "value": found.value}, found.data)
            else:
                self._tell({"reply": number, "value": found})
        except BaseException as error:  # whatever it is, the parent's caller waits for this
            self._tell({"reply": number, "error": error_to_json(error)})
        finally:
            self._doing.discard(number)
            self._cancelled.discard(number)

    def _begin(self, number: int, begun: Begun) -> None:
        self._begun[number] = begun
        if number in self._cancelled:
            begun.generation.cancel()
        self._tell({"reply": number, "value": begun.generation.timings.prompt_tokens})
        begun.generation.watch(lambda: self._told.put(number))

    def _write(self) -> None:
        """Everything that is to be told by now goes in one write: pieces of many answers in one frame."""
        with _dying():
            for items in iter(self._waiting, []):
                frames.write(self._outgoing, b"".join(self._frames(items)))
                if items[-1] is None:
                    return

    def _waiting(self) -> list[bytes | int | None]:
        items = [self._told.get()]
        with suppress(Empty):
            while items[-1] is not None:
                items.append(self._told.get_nowait())
        return items

    def _frames(self, items: list[bytes | int | None]) -> list[bytes]:
        found: list[bytes] = []
        pieces: list[list[Any]] = []
        for item in (*items, b""):
            if isinstance(item, int):
                pieces.append(self._piece(item))
                continue
            if pieces:
                found.append(frames.frame({"pieces": pieces}))
                pieces = []
            found.append(item or b"")
        return found

    def _piece(self, number: int) -> list[Any]:
        """The next piece of an answer, and how the answer ended if it is the last."""
        generation, table = self._begun[number].generation, self._begun[number].table
        try:
            piece = next(generation)
        except EdgeLlamaError as error:
            del self._begun[number]
            return [number, None, {"error": error_to_json(error)}]
        if table:
            table.append(piece.logprobs)
        end = None
        if piece.finish_reason:
            del self._begun[number]
            answer = generation.result()
            end = {"notes": answer.notes, "stop_string": answer.stop_string}
        return [number, wire.piece_to_json(piece, generation.timings), end]


def _watch_parent() -> None:
    """End with the parent also where a fork of it keeps the pipe open."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_GLANCE)
    _die()


class _ParentsLog(logging.Handler):
    """What is logged here is logged in the parent."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"log": [record.name, record.levelno, record.getMessage()]})


def _log_to_parent(tell: Any, level: int) -> None:
    logger = logging.getLogger("edge_llama")
    logger.addHandler(_ParentsLog(tell))
    logger.setLevel(level)
    logger.propagate = False
