"""A first run of a GGUF file in a child process: what makes llama.cpp end its process ends the child alone.

``gguf_limits`` knows the graph of a Llama and the two usual vocabularies. llama.cpp runs some 130 other architectures,
each with asserts of its own, which no check of a header foresees. So a file that we did not write, or of another
architecture, runs once in a child before it is loaded here: the same tower reads a few tokens, writes two, and embeds
a text. That takes as long as loading it (and a second for Python); a good verdict is remembered for the file, the
settings and the engine's build.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_llama.backends import crash_probe
from edge_llama.backends.base import CacheSize, Placement, Rows
from edge_llama.backends.crash_probe import CrashProbe
from edge_llama.backends.device_names import environment
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.errors import EdgeLlamaError
from edge_llama.files.gguf import Header
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.files.identity import file_state, header_sha256
from edge_llama.files.integrity import ROOT
from edge_llama.host import user_cache

if TYPE_CHECKING:
    from edge_llama.backends.llama_cpp.text import LlamaCppTower

_log = logging.getLogger(__name__)
PROBE = CrashProbe("llama.cpp", "llama-cpp-python", build_probe.check)
_KIND = "first-run"
_N_CTX = 256
_TEXT = "Hello, world! It's 12345\n\n\tnaïve 日本語 🦙 <|x|> </s> _"


def require(artifact: GGUFArtifact, settings: Mapping[str, Any]) -> None:
    """ArtifactError if llama.cpp would end the process on this model with these ``settings`` of LlamaCppTower: JSON.

    EngineError if it would on a GPU.
    """
    _finding(artifact, settings, "embeds" if artifact.is_encoder else "survived")


def embeds(artifact: GGUFArtifact, settings: Mapping[str, Any]) -> bool:
    """Whether llama.cpp would survive it, too, that the model embeds a text. Found out with the rest, as a rule."""
    finding = _finding(artifact, settings, "embeds")
    return finding is None or bool(finding["embeds"])


def _finding(artifact: GGUFArtifact, settings: Mapping[str, Any], wanted: str) -> Mapping[str, Any] | None:
    """What a child found out, now or once, that knows what is ``wanted``: earlier versions tried no embedding.

    None where no child is needed, or can't be had.
    """
    if is_known(artifact):
        return None
    if not crash_probe.has_children():
        _log.info("%s: not tried out: this process can start no child", artifact.path)
        return None
    files = [identity_of_header(header) for header in artifact.headers]
    key = {"files": files, "settings": dict(settings), "engine": build_probe.build()}
    device = settings["placement"]["device"] if settings["placement"]["devices"] else ""
    if device:
        key["environment"] = environment()
    finding = user_cache.recall(_KIND, key)
    if finding is None or wanted not in finding:
        said = PROBE.run(__name__, artifact.path, json.dumps(settings), nbytes=artifact.weight_bytes, device=device)
        if said is None:
            return None
        finding = {"survived": True, **said}
        user_cache.remember(_KIND, key, finding)
    return finding


def is_known(artifact: GGUFArtifact) -> bool:
    """Whether our checks cover the file: a Llama that we wrote, with a vocabulary whose ways we know."""
    vocabulary = artifact.header.get("tokenizer.ggml.model", str, "")
    return artifact.architecture == "llama" and vocabulary in ("llama", "gpt2") and ROOT in artifact.header.fields


def identity_of_header(header: Header) -> list[Any]:
    """Which file it is of, untouched: what a verdict is remembered by."""
    status = header.path.stat()
    return [status.st_dev, status.st_ino, *file_state(header.path), header_sha256(header)]


def main(path: str, settings: str) -> None:
    """The child: whatever Python can tell of, the parent will tell when it does the same; only survival counts.

    What it said last counts: a model that writes and dies when it embeds is good for writing.
    """
    crash_probe.begin()
    try:
        for said in _run(Path(path), json.loads(settings)):
            crash_probe.end(said)
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
        crash_probe.end(json.dumps({"embeds": True}))


def _run(path: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """What is known after each step."""
    from edge_llama.backends.llama_cpp.text import LlamaCppTower  # noqa: PLC0415 - loads native code
    from edge_llama.host.devices import free_threads  # noqa: PLC0415

    artifact = read_gguf_text(path)
    n_ctx = min(_N_CTX, artifact.n_ctx_train)
    options = {**settings, "placement": Placement.from_json(settings["placement"])}
    tower = LlamaCppTower(artifact, cache=CacheSize(n_ctx, n_ctx, 2), threads=free_threads(), **options)
    tokens = [0]
    for text in (_TEXT, _TEXT[:20]):
        try:
            tokens = tower.tokenizer.encode(text)[: n_ctx // 4]
        except EdgeLlamaError as error:  # a character that the vocabulary lacks
            _log.debug("%s", error)
    if not artifact.is_encoder:
        _write(tower, tokens)
        yield json.dumps({"embeds": False})
    before, after = tower.tokenizer.frame
    embedder = tower.embedder(1)
    whole = [*before, *tokens, *after][: embedder.n_tokens // 2]
    embedder.states([whole, whole[:1]][: embedder.n_texts])
    tower.close()
    yield json.dumps({"embeds": True})


def _write(tower: "LlamaCppTower", tokens: Sequence[int]) -> None:
    from edge_llama.sampling.params import SamplingParams  # noqa: PLC0415 - loads native code

    sampler = tower.sampler(SamplingParams(temperature=0), tokens)
    for sequence in range(tower.n_sequences):
        (row,) = tower.decode([Rows(sequence, tokens)])
    for _ in range(2):
        token = sampler.sample(row)
        tower.tokenizer.piece(token)
        row = tower.decode([Rows(sequence, [token]) for sequence in range(tower.n_sequences)])[0]
