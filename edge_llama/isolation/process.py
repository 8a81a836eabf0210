"""One child with a model in it, as its parent has it: calls that wait for a reply, answers whose pieces come.

Three threads: one writes, so that nobody waits for a pipe and the garbage collector may cancel; one reads and hands
out; one keeps the last of what the child writes to stderr. None of them refers to the model, which may be dropped.
"""

import io
import itertools
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from edge_llama.backends.load_progress import Listener
from edge_llama.errors import EdgeLlamaError, EngineDiedError, EngineError, error_from_json
from edge_llama.generation import Piece, Progress
from edge_llama.isolation import frames, launch, wire
from edge_llama.isolation.logprob_table import LogprobTable
from edge_llama.isolation.shared_file import ClosedError, Region, SharedFile

_TAIL = 4096
_SECONDS_TO_CLOSE = 30
"""What a child has to free its model, and to write to disk what is kept there: then it is killed."""
_SECONDS_TO_END = 5
"""What a child has to end once its pipe is closed."""


@dataclass(eq=False, slots=True)
class Asked:
    """A call that the child was asked for: its reply, and the regions that are the child's until then."""

    regions: list[Region] = field(default_factory=list)
    progress: Progress | None = None
    table: LogprobTable | None = None
    kept: list[Region] = field(default_factory=list)
    """The table's: the child's until the answer ends."""
    number: int = 0
    """What the child knows it by, once it was asked for."""
    reply: "Future[tuple[Any, bytes]]" = field(default_factory=Future)

    def fail(self, error: EdgeLlamaError) -> None:
        """There will be nothing more."""
        if not self.reply.done():
            self.reply.set_exception(error)
        elif self.progress:
            self.progress.finish(error)


class Child:
    """A child process. Any thread may use it."""

    def __init__(self, opening: Mapping[str, Any], on_progress: Listener | None = None) -> None:
        """``opening``: the path of the model and the options to open it with. EngineError if none can be started."""
        self._on_progress = on_progress
        self.shared = SharedFile()
        try:
            self._process = launch.start(self.shared.descriptor)
        except BaseException:
            self.shared.close()
            raise
        self.pid = self._process.pid
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {0: Asked()}
        """By their numbers; 0 is the opening."""
        self._opened = self._asked[0].reply
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._death: Callable[[], EdgeLlamaError] | None = None
        self._is_closing = False
        self._tail = b""
        self._ended = threading.Event()
        level = logging.getLogger("edge_llama").getEffectiveLevel()
        self._outgoing.put(frames.frame({"open": opening, "log_level": level, "tells": on_progress is not None}))
        self._threads = [
            threading.Thread(target=work, name="edge-llama-child", daemon=True)
            for work in (self._write, self._keep_tail, self._read)
        ]
        for thread in self._threads:  # the one that reads as the last: it joins the others
            thread.start()

    @property
    def is_dead(self) -> bool:
        """Whether it ended, or is about to."""
        return self._death is not None

    def opened(self) -> wire.Facts:
        """Wait for the model; what was decided. Raises what opening it raises, or EngineDiedError."""
        return wire.Facts.from_json(self._opened.result()[0])

    def ask(self, name: str, given: Mapping[str, Any], forget: Sequence[int], asked: Asked) -> None:
        """Have the child do a call, and forget owners. TypeError or ValueError for what JSON can't express."""
        number = next(self._numbers)
        frame = frames.frame({"call": number, "name": name, "given": given, "forget": forget})
        self._asked[number] = asked
        asked.number = number
        self._outgoing.put(frame)
        if self._death:  # perhaps before this was among those that were told
            self._fail_all(self._death)

    def drop(self, asked: Asked) -> None:
        """Nobody waits for it: its memory is free again if it was not asked for, else it is stopped."""
        if asked.number:
            self.cancel(asked.number)
        else:
            self._free(asked.regions)
            self._free(asked.kept)

    def take(self, size: int) -> Region:
        """Memory that the child sees too, for what is asked next. EngineError if there is no room, or it has died."""
        try:
            return self.shared.take(size)
        except ClosedError:
            assert self._death  # noqa: S101 - what closes the file
            raise self._death() from None

    def _free(self, regions: list[Region]) -> None:
        while regions:
            self.shared.free(regions.pop())

    def cancel(self, number: int) -> None:
        """Stop a call or an answer, if it is not over. The garbage collector may call it within anything."""
        self._outgoing.put(frames.frame({"cancel": number}))

    def close(self) -> None:
        """End it: what runs is cancelled, and its memory is free when this returns. May be called twice."""
        self._is_closing = True
        if self._opened.done() and not self.is_dead:
            self._outgoing.put(frames.frame({"close": True}))
            if threading.current_thread() not in self._threads:
                self._ended.wait(_SECONDS_TO_CLOSE)
        if not self._ended.is_set():
            self._kill()
        if threading.current_thread() not in self._threads:
            self._ended.wait()

    def _kill(self) -> None:
        """With what it has started."""
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def _write(self) -> None:
        assert self._process.stdin  # noqa: S101 - a pipe
        with suppress(OSError):  # it is dead: who reads from it tells everybody
            while (data := self._outgoing.get()) is not None:
                frames.write(self._process.stdin.fileno(), data)

    def _keep_tail(self) -> None:
        assert self._process.stderr  # noqa: S101 - a pipe
        while data := self._process.stderr.read(_TAIL):
            self._tail = (self._tail + data)[-_TAIL:]

    def _read(self) -> None:
        assert isinstance(self._process.stdout, io.RawIOBase)  # noqa: S101 - a pipe without a buffer
        file = io.BufferedReader(self._process.stdout, 1 << 16)
        problem = ""
        try:
            while found := frames.read(file):
                self._take(*found)
        except Exception as error:  # what no child of ours sends
            problem = f"what it sends is not understood: {error!r}"
            self._kill()
        self._bury(problem)

    def _take(self, fields: dict[str, Any], blob: bytes) -> None:
        if "pieces" in fields:
            for number, piece, end in fields["pieces"]:
                self._take_piece(number, piece, end)
        elif "reply" in fields:
            self._take_reply(fields, blob)
        elif "log" in fields:
            name, level, text = fields["log"]
            logging.getLogger(name).log(level, "%s", text)
        elif "loaded" in fields:
            self._tell(fields["loaded"])
        elif "opened" in fields:
            self._asked.pop(0).reply.set_result((fields["opened"], b""))
        else:
            self._asked.pop(0).fail(error_from_json(fields["failed"]))

    def _tell(self, fraction: float) -> None:
        """What the listener raises ends the opening."""
        assert self._on_progress  # noqa: S101 - else the child doesn't tell
        try:
            self._on_progress(fraction)
        except BaseException as error:
            self._asked.pop(0).reply.set_exception(error)
            self._kill()

    def _take_reply(self, fields: dict[str, Any], blob: bytes) -> None:
        number = fields["reply"]
        asked = self._asked[number]
        is_begun = asked.progress is not None and "error" not in fields
        if not is_begun:
            del self._asked[number]
        self._free(asked.regions)
        if "error" in fields:
            self._free(asked.kept)
            asked.fail(error_from_json(fields["error"]))
            return
        if asked.progress:
            asked.progress.timings.prompt_tokens = fields["value"]
        asked.reply.set_result((fields["value"], blob))

    def _take_piece(self, number: int, data: Sequence[Any] | None, end: Mapping[str, Any] | None) -> None:
        asked = self._asked[number]
        progress = asked.progress
        assert progress  # noqa: S101 - it is an answer's
        if data is None:
            assert end  # noqa: S101 - nothing but an end has no piece
            del self._asked[number]
            self._free(asked.kept)
            asked.fail(error_from_json(end["error"]))
            return
        logprobs = asked.table.take(data[2]) if asked.table else ()
        piece = wire.piece_from_json(data, progress.timings, logprobs)
        if end is None:
            progress.put(piece)
            progress.send()
        else:
            del self._asked[number]
            self._free(asked.kept)
            self._finish(progress, piece, end)

    @staticmethod
    def _finish(progress: Progress, piece: Piece, end: Mapping[str, Any]) -> None:
        progress.notes, progress.stop_string = tuple(end["notes"]), end["stop_string"]
        progress.finish(piece)

    def _bury(self, problem: str) -> None:
        """The pipe is closed: everybody who waits is told how the child ended."""
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            problem = problem or "it closed its pipe"
            self._kill()
            code = self._process.wait()
        self._threads[1].join(1)  # what it has started may still hold the pipe
        cause = problem or _how(code)
        tail = self._tail.decode(errors="replace")
        is_closing = self._is_closing
        self._death = lambda: closed() if is_closing else EngineDiedError(cause, tail)
        self._outgoing.put(None)
        self._threads[0].join(1)
        self._fail_all(self._death)
        self._give_back()
        self._ended.set()

    def _fail_all(self, death: Callable[[], EdgeLlamaError]) -> None:
        with suppress(KeyError):  # another thread may be doing the same: each is told once
            while True:
                asked = self._asked.popitem()[1]
                self._free(asked.regions)
                self._free(asked.kept)
                asked.fail(death())

    def _give_back(self) -> None:
        """All that a thread does not still use: a helper may have left processes that hold a pipe."""
        pipes = (self._process.stdin, self._process.stderr, self._process.stdout)
        for pipe, thread in zip(pipes, self._threads, strict=True):
            assert pipe  # noqa: S101
            if not thread.is_alive() or thread is threading.current_thread():
                pipe.close()
        self.shared.close()


def closed() -> EngineError:
    """What is raised by a model that was closed."""
    return EngineError("the model is closed", remedy="open it again")


def _how(code: int) -> str:
    """How a process ended: the signal's name, or its exit code."""
    if code >= 0:
        return f"exit code {code if code < 256 else hex(code)}"  # Windows writes what happened as such a number
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
