"""A first run of a model file in a child process: what makes llama.cpp end its process ends the child alone.

``gguf_checks`` knows the graph of a Llama and the two usual vocabularies. llama.cpp runs some 130 other architectures,
each with asserts of its own, which no check of a header foresees. So a file that we did not write, or of another
architecture, runs once in a child before it is loaded here: the same tower reads a few tokens. That takes as long as
loading it (and a second for Python); a good verdict is remembered for the file, the settings and the engine's build.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_llama.backends.llama_cpp import build_probe
from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError
from edge_llama.files.gguf import Header
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.files.identity import file_state, header_sha256
from edge_llama.files.integrity import ROOT
from edge_llama.host import user_cache

_log = logging.getLogger(__name__)
_KIND = "first-run"
LLAMA_CPP, ONNX_RUNTIME = "llama.cpp", "ONNX Runtime"
_PACKAGES = {LLAMA_CPP: "llama-cpp-python", ONNX_RUNTIME: "onnxruntime"}
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module
import_module(sys.argv[2]).main(*sys.argv[3:])
"""
_BEGAN, _SURVIVED = "began", "survived "
_SECONDS, _BYTES_PER_SECOND = 120, 10e6  # half a second and a gigabyte a second when quiet
_N_CTX = 256
_TEXT = "Hello, world! It's 12345\n\n\tnaïve 日本語 🦙 <|x|> </s> _"


def require(artifact: GGUFArtifact, settings: Mapping[str, Any]) -> None:
    """ArtifactError if llama.cpp would end the process on this model with these ``settings`` of LlamaCppTower."""
    if _is_known(artifact):
        return
    if not has_children():
        _log.info("%s: not tried out: this process has no interpreter for a child", artifact.path)
        return
    files = [_identity(header) for header in artifact.headers]
    key = {"files": files, "settings": dict(settings), "engine": build_probe.build()}
    if user_cache.recall(_KIND, key) is not None:
        return
    if child(__name__, artifact.path, json.dumps(settings), nbytes=artifact.weight_bytes) is not None:
        user_cache.remember(_KIND, key, {"survived": True})


def has_children() -> bool:
    """Whether this process has an interpreter to run a child with: a frozen application has none."""
    return not getattr(sys, "frozen", False) and bool(sys.executable)


def _is_known(artifact: GGUFArtifact) -> bool:
    """Whether our checks cover the file: a Llama that we wrote, with a vocabulary whose ways we know."""
    vocabulary = artifact.header.get("tokenizer.ggml.model", str, "")
    return artifact.architecture == "llama" and vocabulary in ("llama", "gpt2") and ROOT in artifact.header.fields


def _identity(header: Header) -> list[Any]:
    status = header.path.stat()
    return [status.st_dev, status.st_ino, *file_state(header.path), header_sha256(header)]


def child(module: str, path: Path, *arguments: str, nbytes: int = 0, engine: str = LLAMA_CPP) -> dict[str, Any] | None:
    """What ``main(path, *arguments)`` of a module says in a child process by :func:`end`; None if it could not begin.

    ArtifactError about ``path`` if the child died or took too long for ``nbytes`` of weights.
    """
    seconds = _SECONDS + nbytes / _BYTES_PER_SECOND
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), module, str(path), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this module
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "3000"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        _log.info("%s: not tried out: no child can be started: %s", path, error)
        return None
    except subprocess.TimeoutExpired as error:
        raise _refused(path, engine, f"took more than {seconds:,.0f} s") from error
    lines = done.stdout.splitlines()
    if _BEGAN not in lines:
        _log.info("%s: not tried out: the child did not begin: %s", path, done.stderr.strip()[-300:])
        return None
    said = next((line.removeprefix(_SURVIVED) for line in lines if line.startswith(_SURVIVED)), None)
    if said is None:
        raise _death(path, engine, done.returncode, done.stderr)
    found: dict[str, Any] = json.loads(said)
    return found


def _death(path: Path, engine: str, code: int, told: str) -> EdgeLlamaError:
    """The error about a child that did not survive: the file's fault, unless the engine or the memory is to blame."""
    if code == -9:
        return EngineError(f"{path}: a trial run was killed, perhaps for want of memory", remedy="close other programs")
    if engine == LLAMA_CPP:
        build_probe.check()
    lines = told.strip().splitlines()
    how = f"died of signal {-code}" if code < 0 else f"ended with {code}"
    return _refused(path, engine, how, lines[-1] if lines else "")


def _refused(path: Path, engine: str, how: str, why: str = "") -> ArtifactError:
    how += f": {why}" if why else ""
    return ArtifactError(
        f"{path}: {engine} cannot run it: a trial run in a process of its own {how}",
        remedy=f"the file is damaged, or this {engine} is not made for it: download it again, or update "
        f"{_PACKAGES[engine]}",
    )


def main(path: str, settings: str) -> None:
    """The child: whatever Python can tell of, the parent will tell when it does the same; only survival counts."""
    begin()
    try:
        _run(Path(path), json.loads(settings))
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
    end()


def begin() -> None:
    """Tell the parent that this process has come so far; a death from here on is expected, and leaves no core."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(_BEGAN, flush=True)  # noqa: T201 - the parent reads it


def end(said: str = "{}") -> None:
    """Tell the parent that this process survived, and what it found out: JSON."""
    print(_SURVIVED + said, flush=True)  # noqa: T201


def _run(path: Path, settings: Mapping[str, Any]) -> None:
    from edge_llama.backends.llama_cpp.text import LlamaCppTower  # noqa: PLC0415 - loads native code
    from edge_llama.host.devices import free_threads  # noqa: PLC0415
    from edge_llama.sampling.params import SamplingParams  # noqa: PLC0415

    artifact = read_gguf_text(path)
    n_ctx = min(_N_CTX, artifact.n_ctx_train)
    tower = LlamaCppTower(artifact, n_ctx=n_ctx, threads=free_threads(), **settings)
    tokens = [0]
    for text in (_TEXT, _TEXT[:20]):
        try:
            tokens = tower.tokenizer.encode(text)[: n_ctx // 2]
        except EdgeLlamaError as error:  # a character that the vocabulary lacks
            _log.debug("%s", error)
    tower.decode(tokens)
    sampler = tower.sampler(SamplingParams(temperature=0), tokens)
    for _ in range(2):
        token = sampler.sample()
        tower.tokenizer.piece(token)
        tower.decode([token])
    tower.logits()
    tower.close()
