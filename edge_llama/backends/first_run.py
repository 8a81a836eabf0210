"""A first run of a model file in a child process: what makes llama.cpp end its process ends the child alone.

``gguf_checks`` knows the graph of a Llama and the two usual vocabularies. llama.cpp runs some 130 other architectures,
each with asserts of its own, which no check of a header foresees. So a file that we did not write, or of another
architecture, runs once in a child before it is loaded here: the same tower reads a few tokens. That takes as long as
loading it (and a second for Python); a good verdict is remembered for the file, the settings and the engine's build.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_llama import remembered
from edge_llama.artifact import Artifact, read_artifact
from edge_llama.backends import health
from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError
from edge_llama.integrity import ROOT

_log = logging.getLogger(__name__)
_KIND = "first-run"
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from edge_llama.backends.first_run import main
main(*sys.argv[2:])
"""
_BEGAN, _SURVIVED = "began", "survived"
_SECONDS, _BYTES_PER_SECOND = 120, 10e6  # half a second and a gigabyte a second when quiet
_N_CTX = 256
_TEXT = "Hello, world! It's 12345\n\n\tnaïve 日本語 🦙 <|x|> </s> _"


def require(artifact: Artifact, settings: Mapping[str, Any]) -> None:
    """ArtifactError if llama.cpp would end the process on this model with these ``settings`` of LlamaCppTower."""
    if _is_known(artifact):
        return
    if getattr(sys, "frozen", False) or not sys.executable:
        _log.info("%s: not tried out: this process has no interpreter for a child", artifact.path)
        return
    files = [_identity(header.path, header.data_offset) for header in artifact.headers]
    key = {"files": files, "settings": dict(settings), "engine": health.build()}
    if remembered.recall(_KIND, key) is None and _survives(artifact, settings):
        remembered.remember(_KIND, key, {"survived": True})


def _is_known(artifact: Artifact) -> bool:
    """Whether our checks cover the file: a Llama that we wrote, with a vocabulary whose ways we know."""
    vocabulary = artifact.header.get("tokenizer.ggml.model", str, "")
    return artifact.architecture == "llama" and vocabulary in ("llama", "gpt2") and ROOT in artifact.header.fields


def _identity(path: Path, data_offset: int) -> list[Any]:
    status = path.stat()
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(data_offset)).hexdigest()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, header]


def _survives(artifact: Artifact, settings: Mapping[str, Any]) -> bool:
    """Whether the child ran to its end; False if it could not begin. ArtifactError if it died."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(artifact.path), json.dumps(settings)]
    seconds = _SECONDS + artifact.weight_bytes / _BYTES_PER_SECOND
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, this module
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
        _log.info("%s: not tried out: no child can be started: %s", artifact.path, error)
        return False
    except subprocess.TimeoutExpired as error:
        raise _refused(artifact, f"took more than {seconds:,.0f} s") from error
    said = child.stdout.split()
    if _BEGAN not in said:
        _log.info("%s: not tried out: the child did not begin: %s", artifact.path, child.stderr.strip()[-300:])
        return False
    if _SURVIVED not in said:
        raise _death(artifact, child.returncode, child.stderr)
    return True


def _death(artifact: Artifact, code: int, told: str) -> EdgeLlamaError:
    """The error about a child that did not survive: the file's fault, unless the engine or the memory is to blame."""
    if code == -9:
        return EngineError(
            f"{artifact.path}: a trial run was killed, perhaps for want of memory", remedy="close other programs"
        )
    health.check()
    lines = told.strip().splitlines()
    return _refused(
        artifact, f"died of signal {-code}" if code < 0 else f"ended with {code}", lines[-1] if lines else ""
    )


def _refused(artifact: Artifact, how: str, why: str = "") -> ArtifactError:
    how += f": {why}" if why else ""
    return ArtifactError(
        f"{artifact.path}: llama.cpp cannot run it: a trial run in a process of its own {how}",
        remedy="the file is damaged, or this llama.cpp is not made for it: download it again, or update "
        "llama-cpp-python",
    )


def main(path: str, settings: str) -> None:
    """The child: whatever Python can tell of, the parent will tell when it does the same; only survival counts."""
    _leave_no_core()
    print(_BEGAN, flush=True)  # noqa: T201 - the parent reads it
    try:
        _run(Path(path), json.loads(settings))
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
    print(_SURVIVED, flush=True)  # noqa: T201


def _run(path: Path, settings: Mapping[str, Any]) -> None:
    from edge_llama.backends.llama_cpp import LlamaCppTower  # noqa: PLC0415 - loads native code
    from edge_llama.devices import free_threads  # noqa: PLC0415
    from edge_llama.sampling import SamplingParams  # noqa: PLC0415

    artifact = read_artifact(path)
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


def _leave_no_core() -> None:
    """A death here is expected and no reason to fill the disk."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
