"""``edge-llama calibrate --for importance``: what each column of each matrix counts, measured on texts.

A GGUF is run by llama.cpp, a checkpoint layer by layer. Texts are one stream of tokens in chunks, as llama-imatrix
cuts them; what fills no chunk is told.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_llama.backends import local_models
from edge_llama.backends.towers import checkpoint_at
from edge_llama.cli.importance_sources import CheckpointSource, Chunks, GGUFSource, Source
from edge_llama.cli.resuming import resumable
from edge_llama.cli.terminal.console import note, progress
from edge_llama.errors import OptionError, OutputError
from edge_llama.fidelity.packed import Packed, packed
from edge_llama.fidelity.texts import Text, as_chats, default_texts, fingerprint, hashes, read_text
from edge_llama.planning.options import OpenOptions
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.messages import Message
from edge_llama.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.importance import Importance
    from quant.importance.partial import Partial

Show = Callable[[int, int], None]
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
    from quant.importance import HASHES, MODEL, TEXTS, write_importance  # noqa: PLC0415 - likewise

    if asked.n_ctx < _LEAST:
        raise OptionError(f"--n-ctx {asked.n_ctx}: expected at least {_LEAST}", remedy="512 is usual")
    texts = [read_text(path) for path in samples] or default_texts("calibration")
    path = local_models.found(model)
    if checkpoint_at(path):
        if asked.opening:
            raise OptionError("--device is for .gguf files; a checkpoint runs on the CPU", remedy="leave it out")
        source: Source = CheckpointSource(path, output, asked.n_ctx, asked.threads)
    else:
        source = GGUFSource(path, output, asked.n_ctx, asked.threads, asked.opening)
    try:
        found, partial = _measured(source, texts, output, asked)
    finally:
        source.close()
    names = [text.name for text in texts] if samples else [_DEFAULT]
    notes = {MODEL: source.identity, TEXTS: fingerprint(texts), HASHES: hashes(texts)}
    found = replace(found, datasets=tuple(names), notes=notes)
    write_importance(output, found)
    partial.remove()
    for line in _few(found):
        note(line, quiet=asked.quiet)
    n_tokens = found.n_chunks * found.chunk_size
    note(f"{output}: importance for {len(found.entries):,} matrices over {n_tokens:,} tokens", quiet=asked.quiet)


def _measured(source: Source, texts: Sequence[Text], output: Path, asked: Asked) -> "tuple[Importance, Partial]":
    """All of the texts, and the file of what was kept meanwhile."""
    from quant.importance import Importance, Sums  # noqa: PLC0415 - likewise
    from quant.importance.partial import Partial  # noqa: PLC0415

    cut = _cut(texts, source.tokenizer, source.template() if asked.is_chat else None, asked)
    partial = Partial(output, _key(source.identity, texts, asked))
    with resumable(partial.path):
        _collect(source, cut.chunks, partial, quiet=asked.quiet)
    entries = {name: Sums(sums.astype(np.float32), counts) for name, (sums, counts) in source.sums().items()}
    return Importance(entries, len(cut.chunks), asked.n_ctx), partial


def _collect(source: Source, chunks: Chunks, partial: "Partial", *, quiet: bool) -> None:
    """Read what an earlier run did not, and keep what is known so far: also where this one is stopped."""
    done, sums = partial.read()
    if done:
        note(f"goes on after {done:,} of {len(chunks):,} chunks, which an earlier run read", quiet=quiet)
    source.begin(sums)
    wait, kept = 0.0, time.monotonic()
    with progress("measuring", quiet=quiet, unit="tokens") as show:
        try:
            while done < len(chunks):
                some = chunks[done : done + source.together]
                source.read(some, _telling(show, done, some, chunks))
                done += len(some)
                if (began := time.monotonic()) - kept >= wait:
                    partial.write(done, source.sums())
                    kept = time.monotonic()
                    wait = _SHARE * (kept - began)
        except BaseException:
            if done:
                with suppress(OutputError):  # what stopped it is what is told
                    partial.write(done, source.sums())
            raise


def _telling(
    show: Callable[[int, int], None] | None, done: int, some: Chunks, chunks: Chunks
) -> Callable[[float], None]:
    """What is told how much of ``some`` chunks after ``done`` ones was read; it shows tokens."""
    size = len(chunks[0])

    def tell(share: float) -> None:
        if show:
            show(round((done + share * len(some)) * size), len(chunks) * size)

    return tell


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
