"""``edge-llama calibrate --for importance``: what each column of each matrix counts, measured on texts.

A GGUF is run by llama.cpp, a checkpoint layer by layer. Texts are one stream of tokens in chunks, as llama-imatrix
cuts them; what fills no chunk is told.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import local_models
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.cli.resuming import resumable
from edge_llama.cli.terminal.console import note, progress
from edge_llama.errors import OptionError, OutputError
from edge_llama.fidelity.packed import Packed, packed
from edge_llama.fidelity.texts import Text, as_chats, default_texts, fingerprint, hashes, read_text
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.planning.options import OpenOptions
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.messages import Message
from edge_llama.prompts.model_template import template_of
from edge_llama.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edge_llama.backends.llama_cpp.importance import Collector
    from edge_llama.backends.llama_cpp.text import LlamaCppTower
    from quant.importance import Importance
    from quant.importance.partial import Partial

_LEAST = 16
"""Tokens of a chunk: llama-imatrix sees none of shorter ones."""
_DEFAULT = "edge-llama calibration"
"""What the default texts are called in files."""
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_SHARE = 20
"""What was measured is kept when so many times as long has passed as keeping it took: a twentieth of the time."""
_SHOWN = 5
"""Tensors of which it is told that experts saw few tokens."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How to measure: chunks of ``n_ctx`` tokens, as chats or as they are."""

    n_ctx: int
    threads: int
    opening: OpenOptions
    is_chat: bool
    quiet: bool


def check_names(samples: Sequence[Path], output: Path) -> None:
    """OptionError for an output in no form that is known, and for pictures among the texts."""
    from quant.importance import SUFFIXES  # noqa: PLC0415 - the runtime's verbs must not need this half

    if output.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{output}: is no {' or '.join(SUFFIXES)}", remedy="the form follows from the name's end")
    for path in samples:
        if path.suffix.lower() in _PICTURES:
            raise OptionError(f"{path}: is a picture; importance is measured on texts", remedy="leave it out")


def measure_importance(model: str, samples: Sequence[Path], output: Path, asked: Asked) -> None:
    """Measure, and write ``output``. What was measured until it is stopped is kept beside it, and gone on from.

    OptionError, DocumentError, ArtifactError or EngineError for what can't be measured, or not with these texts;
    OutputError if ``output`` can't be written.
    """
    from quant.importance import HASHES, TEXTS, write_importance  # noqa: PLC0415 - likewise

    if asked.n_ctx < _LEAST:
        raise OptionError(f"--n-ctx {asked.n_ctx}: expected at least {_LEAST}", remedy="512 is usual")
    texts = [read_text(path) for path in samples] or default_texts("calibration")
    path = local_models.found(model)
    measured = _of_gguf
    found, partial = measured(path, texts, output, asked)
    names = [text.name for text in texts] if samples else [_DEFAULT]
    notes = {TEXTS: fingerprint(texts), HASHES: hashes(texts)}
    found = replace(found, datasets=tuple(names), notes={**found.notes, **notes})
    write_importance(output, found)
    partial.remove()
    for line in _few(found):
        note(line, quiet=asked.quiet)
    n_tokens = found.n_chunks * found.chunk_size
    note(
        f"{output}: importance of {len(found.entries):,} matrices' columns over {n_tokens:,} tokens", quiet=asked.quiet
    )


def _of_gguf(path: Path, texts: Sequence[Text], output: Path, asked: Asked) -> "tuple[Importance, Partial]":
    """By llama.cpp, from its evaluation callback."""
    from converters.output import check_inputs  # noqa: PLC0415 - likewise
    from quant.importance import MODEL, Importance, Sums  # noqa: PLC0415
    from quant.importance.partial import Partial  # noqa: PLC0415

    artifact = open_artifact(locate(path))
    if not isinstance(artifact, GGUFArtifact) or artifact.is_encoder:
        what = "an embedding model" if artifact.engine == "llama.cpp" else f"a model for {artifact.engine}"
        raise OptionError(
            f"{artifact.path}: is {what}; importance is measured of a .gguf that writes text, or of a checkpoint",
            remedy="give one of these",
        )
    check_inputs(output, [], artifact.files)
    opening: OpenOptions = {"n_ctx": asked.n_ctx, "max_running": 1, "n_batch": _LEAST, "tune": False}
    tower = plan_engine(artifact, {**opening, **asked.opening}).open(asked.threads)
    try:
        template = template_of(artifact, None).compiled(tower.tokenizer) if asked.is_chat else None
        cut = _cut(texts, tower.tokenizer, template, asked)
        partial = Partial(output, _key(artifact.identity(), texts, asked))
        collector = cast("LlamaCppTower", tower).importance(asked.n_ctx)
        try:
            with resumable(partial.path):
                _collect(collector, cut.chunks, partial, quiet=asked.quiet)
        finally:
            collector.close()
    finally:
        tower.close()
    entries = {name: Sums(sums.astype(np.float32), counts) for name, (sums, counts) in collector.sums.items()}
    return Importance(entries, len(cut.chunks), asked.n_ctx, notes={MODEL: artifact.identity()}), partial


def _collect(collector: "Collector", chunks: Sequence[NDArray[np.int64]], partial: "Partial", *, quiet: bool) -> None:
    """Read what an earlier run did not, and keep what is known so far: also where this one is stopped."""
    done, sums = partial.read()
    if done:
        note(f"goes on after {done:,} of {len(chunks):,} chunks, which an earlier run read", quiet=quiet)
    collector.sums = dict(sums)
    size, wait, kept = len(chunks[0]), 0.0, time.monotonic()
    with progress("measuring", quiet=quiet, unit="tokens") as show:
        try:
            for number in range(done, len(chunks)):
                collector.read(chunks[number].tolist())
                done = number + 1
                if show:
                    show(done * size, len(chunks) * size)
                if (began := time.monotonic()) - kept >= wait:
                    partial.write(done, collector.sums)
                    kept = time.monotonic()
                    wait = _SHARE * (kept - began)
        except BaseException:
            if done:
                with suppress(OutputError):  # what stopped it is what is told
                    partial.write(done, collector.sums)
            raise


def _cut(texts: Sequence[Text], tokenizer: Tokenizer, template: ChatTemplate | None, asked: Asked) -> Packed:
    """The chunks that are read; it is told what is left out."""
    ids: Iterable[NDArray[np.int64]]
    if template:

        def render(text: str) -> list[int]:
            return template.tokens([Message("user", text)])

        ids = (chat.ids for chat in as_chats(texts, render))
    else:
        ids = (np.asarray(tokenizer.encode(text.content), np.int64) for text in texts)
    cut = packed(ids, asked.n_ctx, bos=tokenizer.bos)
    if cut.left_over:
        told = f"{cut.left_over:,} tokens at the end fill no chunk of {asked.n_ctx:,} and are left out"
        note(told, quiet=asked.quiet)
    return cut


def _key(identity: str, texts: Sequence[Text], asked: Asked) -> str:
    """What is measured: what was kept of anything else is not gone on from."""
    parts = (identity, fingerprint(texts), asked.n_ctx, asked.is_chat, asked.opening)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _few(found: "Importance") -> Iterator[str]:
    """Which experts saw few tokens, and what becomes of them."""
    from quant.importance import FEW  # noqa: PLC0415 - likewise

    few = found.with_few_tokens()
    for name, experts in list(few.items())[:_SHOWN]:
        counts = found.entries[name].counts
        none = int(np.count_nonzero(counts == 0))
        told = f"{name}: {len(experts):,} of {len(counts):,} experts saw fewer than {FEW} tokens"
        yield told + (f", {none:,} of them none: all their columns count alike" if none else "")
    if len(few) > _SHOWN:
        yield f"so it is in {len(few) - _SHOWN:,} more matrices; longer texts reach more experts"
