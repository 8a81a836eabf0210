"""A child process that is given jobs as lines of JSON, any number at once, and answers each with a line.

:class:`Child` is its parent's side, :func:`serve` its own. Standard library only: a peer's environment has no more.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

Answer = dict[str, Any]


class Child:
    """A process that serves jobs; threads may share it."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it says that it is ready."""
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._answers: dict[int, SimpleQueue[Answer]] = {0: SimpleQueue()}
        self._is_ended = False
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self._wait(next(self._numbers))

    def call(self, kind: str, **job: Any) -> Answer:
        """What it answers. Ends the program if the job failed or the child is gone."""
        number = next(self._numbers)
        assert self._process.stdin
        with self._lock:
            self._answers[number] = SimpleQueue()
            if not self._is_ended:
                print(json.dumps({"number": number, "kind": kind, **job}), file=self._process.stdin, flush=True)
            else:
                self._answers[number].put({"error": f"it ended with {self._process.wait()}"})
        return self._wait(number)

    def close(self) -> None:
        """End it: it frees what it holds when its input ends."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, number: int) -> Answer:
        answer = self._answers[number].get()
        del self._answers[number]
        if "error" in answer:
            raise ChildError(f"{' '.join(map(str, self._process.args))}: {answer['error']}")  # type: ignore[arg-type]
        return answer

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers[answer.pop("number")].put(answer)
        with self._lock:
            self._is_ended = True
            for waiting in self._answers.values():
                waiting.put({"error": f"it ended with {self._process.wait()}"})


class ChildError(Exception):
    """A job failed in its child process, or the process died."""


def serve(jobs: Mapping[str, Callable[..., Answer]], ready: Answer) -> None:
    """Answer the jobs on standard input, each in a thread of its own, until the input ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    lock = threading.Lock()

    def say(number: int, answer: Answer) -> None:
        with lock:
            print(json.dumps({"number": number, **answer}), file=out, flush=True)

    def work(job: dict[str, Any]) -> None:
        number, kind = job.pop("number"), job.pop("kind")
        try:
            say(number, jobs[kind](**job))
        except Exception as error:
            say(number, {"error": f"{type(error).__name__}: {error}"})

    say(0, ready)
    for line in sys.stdin:
        threading.Thread(target=work, args=(json.loads(line),), daemon=True).start()
