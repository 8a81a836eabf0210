"""A model, chat or answer that is pickled or copied says what to do instead; errors come whole out of a pickle."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_llama
from edge_llama import errors

COPIES: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "bound": lambda thing: pickle.dumps(thing.__enter__ if hasattr(thing, "__enter__") else thing.send),
    "within": lambda thing: copy.deepcopy({"one": [thing]}),
}


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_they_say_what_to_do_instead(small_talk: Path, how: str, isolate: bool) -> None:
    with edge_llama.open(small_talk, n_ctx=128, isolate=isolate) as model:
        chat = model.chat()
        generation = chat.send("Hi", max_tokens=1, temperature=0)
        for thing, remedy in ((model, "edge_llama.open"), (chat, "fork()"), (generation, "generation.result()")):
            with pytest.raises(edge_llama.CopyError, match="can't be pickled or copied") as caught:
                COPIES[how](thing)
            assert isinstance(caught.value, TypeError | edge_llama.InputError)
            assert remedy in str(caught.value)
            assert "\n" not in str(caught.value)
        answer = generation.result()  # none of that harmed it
        assert pickle.loads(pickle.dumps((answer, chat.messages))) == (answer, chat.messages)


POOL = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import edge_llama

if __name__ == "__main__":
    with edge_llama.open(sys.argv[1], n_ctx=128) as model:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            print(repr(pool.submit(len, model).exception(timeout=60)))
"""


def test_a_pool_of_processes_says_it_too(small_talk: Path, tmp_path: Path) -> None:
    program = tmp_path / "pool.py"  # a process of its own, which takes the pool's helpers with it
    program.write_text(POOL)
    done = subprocess.run(
        [sys.executable, program, small_talk], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith('CopyError("'), done.stderr
    assert "can't be pickled or copied" in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        errors.OptionError("a message", remedy="a remedy"),
        errors.BusyError(1, 2, 3),
        errors.DeadlineError(),
        errors.EngineDiedError("SIGKILL", "last words"),
        errors.RemoteError("http://host", "gone", status=500),
        errors.ContextFullError(9, 5),
        errors.UnknownOptionError("n_ctxx", "open", ["n_ctx", "threads"]),
    ],
)
def test_errors_are_pickled_and_copied_whole(error: errors.EdgeLlamaError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again), again.args) == (str(error), vars(error), error.args)
