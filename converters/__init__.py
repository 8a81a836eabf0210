"""Checkpoint to artifact: the one loop, in full view.

``convert`` opens the source, lays out the whole output (every size is known from shapes and formats), writes the
header and then streams the tensors after it: rows are read, recoded and written in chunks, on all cores, with a few
chunks in memory. The output appears complete or not at all; what an earlier run of the same left is kept.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Checkpoint
from converters.evidence.notes import notes_on
from converters.layout import Entry, Layout
from converters.options import Options
from converters.output import partial_folder, partial_output
from converters.proof import TOPIC as TOKENIZER_NOTE
from converters.proof import prove
from converters.shapes import sketch
from converters.sources import fingerprint, open_checkpoint
from converters.targets import choose, gguf_adapter
from converters.tensors.pending_scales import PendingScales
from converters.times import Times
from converters.tokenizers.proof import GGUFEncoder
from converters.transforms import lora
from converters.transforms.chat_templates import with_template
from edge_llama.errors import CheckpointError, EngineError, OptionError
from edge_llama.host.devices import logical_cores
from quant.kernels import NonFiniteError, recode, recode_arrays
from quant.loading import Need, check_kernels, loading_kernels
from quant.nbits import ArrayFormat

__all__ = ["Conversion", "Examiner", "Options", "Plan", "Progress", "convert", "partial_folder", "plan"]

Progress = Callable[[int, int], None]
"""Called with the bytes of :attr:`Layout.source_bytes` finished so far, and how many there are."""

_MAX_THREADS = 64  # each has two chunks in memory
_CHUNK = 1 << 20  # weights recoded at once: 4 MB as float32, a good fit for a core's cache


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do: nothing was written, no weight was read."""

    checkpoint: Checkpoint
    layout: Layout
    options: Options
    """As asked, and where that leaves a choice, as chosen."""
    inputs: tuple[Path, ...]
    """What was named to read from, files and folders: the output may be none of these."""
    files: tuple[Path, ...]
    """Every file that is read, also those that would be if they were there."""
    source_state: str
    """Names, sizes and times of these files: a change while they are read is noticed by it."""
    is_adapter: bool = False
    """Whether an adapter alone is written, without its base."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before using the output, a sentence each."""
        return self.layout.warnings + self.checkpoint.warnings

    @property
    def key(self) -> str:
        """Identifies the conversion: another source, other options or another version have another."""
        digest = hashlib.sha256(f"{version('edge-llama')} {self.source_state} {self.layout.is_folder}".encode())
        for part in self.layout.parts:
            digest.update(f"{part.name} {part.alignment}".encode() + part.header)
        for name, content in self.layout.small_files.items():
            digest.update(name.encode() + content)
        return digest.hexdigest()


class Examiner(Protocol):
    """Looks at an output that is complete, and has not taken its place yet."""

    def check(self, plan: Plan) -> None:
        """Raise what speaks against it before any work begins."""

    def examine(self, plan: Plan, output: Path) -> None:
        """Look at ``output``, the file that is opened or the folder, and put into it what was found.

        An EdgeLlamaError ends the conversion: no output is left.
        """


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: the plan, the file to open (or the folder), and what it took."""

    plan: Plan
    output: Path
    resumed_bytes: int
    """Bytes of the output that an earlier run, which was stopped, had left."""
    sync_seconds: float
    """Time that the file system took to make the data safe on its disk."""
    times: Times


def plan(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    encode_gguf: GGUFEncoder | None = None,
    **options: Any,
) -> Plan:
    """Lay out the conversion of ``source`` to ``output``; ``options`` are those of :class:`Options`.

    ``encode_gguf`` asks an engine for the proof that the tokenizer which is written is the source's; without it there
    is none. Raises what :func:`convert` would raise before it starts.
    """
    asked = Options(**options)
    if gguf_adapter.is_asked(Path(source), Path(output), asked):
        return _adapter_plan(Path(source), Path(output), asked)
    checkpoint = open_checkpoint(Path(source))
    if asked.base is not None:
        raise OptionError("--base: is for adapters alone", remedy="leave it out")
    target, chosen = choose(Path(output), checkpoint, asked)
    inputs = [checkpoint.path, *chosen.files, *([] if chosen.lora is None else [Path(chosen.lora)])]
    if chosen.lora is not None:
        checkpoint = lora.merge(checkpoint, Path(chosen.lora))
    checkpoint = with_template(checkpoint, chosen.chat_template)
    files = (*checkpoint.files, *chosen.files)
    layout = target.lay_out(checkpoint, Path(output).name, chosen)
    checkpoint = replace(checkpoint, notes={**checkpoint.notes, **notes_on(chosen, layout)})
    check_kernels(_quantized(layout.entries))
    if encode_gguf is not None and (proof := prove(checkpoint, layout, encode_gguf)):
        checkpoint = replace(checkpoint, notes={**checkpoint.notes, TOKENIZER_NOTE: proof})
    return Plan(checkpoint, layout, chosen, tuple(inputs), files, fingerprint(files))


def _adapter_plan(folder: Path, output: Path, asked: Options) -> Plan:
    """That of an adapter by itself, to be opened beside its base."""
    chosen = gguf_adapter.chosen(asked, output)
    base = gguf_adapter.base_of(folder, chosen)
    adapter = gguf_adapter.opened(folder, sketch(base).checkpoint)
    checkpoint = gguf_adapter.as_checkpoint(adapter)
    layout = gguf_adapter.lay_out(adapter, output.name, chosen)
    check_kernels(_quantized(layout.entries))
    files = checkpoint.files
    inputs = (folder, adapter.base.checkpoint.path)
    return Plan(checkpoint, layout, chosen, inputs, files, fingerprint(files), is_adapter=True)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    threads: int | None = None,
    on_progress: Progress | None = None,
    encode_gguf: GGUFEncoder | None = None,
    examiner: Examiner | None = None,
    **options: Any,
) -> Conversion:
    """Convert the checkpoint at ``source`` into ``output`` in one streaming pass; the rest: see :func:`plan`.

    An existing output is replaced only with ``force``. ``examiner`` sees the output before it takes its place. Raises
    CheckpointError, OptionError or OutputError, and what ``examiner`` does; then no output exists and nothing is left
    behind. Stopped in another way (Ctrl-C), it leaves :func:`partial_folder`, and the same call goes on from there.
    """
    work = plan(source, output, encode_gguf=encode_gguf, **options)
    output = Path(output)
    if examiner:
        examiner.check(work)
    with partial_output(output, work.layout, work.key, work.inputs, work.files, force=force) as partial:
        counts = work.layout.bytes_read
        total, begun = sum(counts), len(counts) - len(partial.remaining)
        done, shares = sum(counts[:begun]), deque(counts[begun:])
        check = not work.options.allow_nonfinite
        threads = min(threads or logical_cores(), _MAX_THREADS)
        times = Times(threads)
        with loading_kernels(_quantized(partial.remaining), threads):
            for entry, data, stop in _recoded(partial.remaining, threads, check, times):
                is_last = stop == entry.tensor.rows
                with times.measured("write"):
                    partial.write(data, ends_entry=is_last)
                if on_progress:
                    on_progress(done + shares[0] * stop // entry.tensor.rows, total)
                if is_last:
                    done += shares.popleft()
        if fingerprint(work.files) != work.source_state:
            raise CheckpointError(f"{work.checkpoint.path}: changed while it was read", remedy="start again")
        if examiner:
            first = "" if work.layout.is_folder else work.layout.parts[0].name
            partial.examine = lambda folder: examiner.examine(work, folder / first)
    opened = output if work.layout.is_folder else output.parent / work.layout.parts[0].name
    return Conversion(work, opened, partial.resumed_bytes, partial.sync_seconds, times)


def _quantized(entries: Sequence[Entry]) -> Counter[Need]:
    """How many weights are to be quantized in each format, by importance and without."""
    counts: Counter[Need] = Counter()
    for entry in entries:
        if entry.format.is_quantized and not entry.is_exact:
            need = Need(entry.format, entry.importance is not None)
            counts[need] += entry.tensor.rows * entry.tensor.columns
    return counts


def _recoded(
    entries: Sequence[Entry], threads: int, check: bool, times: Times
) -> Iterator[tuple[Entry, NDArray[np.uint8], int]]:
    """Each entry's rows in its format, in order, and up to which row; a few chunks are worked on ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="convert")
    work = _Recoding(check, times, PendingScales((entry.tensor, entry.format) for entry in entries))
    ahead: deque[tuple[Entry, Future[NDArray[np.uint8]], int]] = deque()
    try:
        for entry in entries:
            weights = entry.importance() if entry.importance else None
            for start, stop in _chunks(entry):
                rows = pool.submit(work.recode, entry, start, stop, weights)
                ahead.append((entry, rows, stop))
                if len(ahead) > 2 * threads:
                    entry_, future, end = ahead.popleft()
                    yield entry_, future.result(), end
        for entry_, future, end in ahead:
            yield entry_, future.result(), end
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(entry: Entry) -> Iterator[tuple[int, int]]:
    tensor = entry.tensor
    rows = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
    for start in range(0, tensor.rows, rows):
        yield start, min(start + rows, tensor.rows)


@dataclass(frozen=True, slots=True)
class _Recoding:
    """How rows become those of the output, whichever tensor's."""

    check: bool
    times: Times
    pending: PendingScales

    def recode(self, entry: Entry, start: int, stop: int, weights: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` of an entry, whose columns ``weights`` (n_experts, columns) are the importance of.

        CheckpointError and EngineError name the tensor.
        """
        tensor = entry.tensor
        if (waiting := self.pending.take(tensor, entry.format, start)) is not None:
            return waiting
        try:
            with self.times.measured("read"):
                raw = tensor.read(start, stop)
            with self.times.measured("compute"):
                if weights is not None:
                    return _weighed(raw, entry, start, weights, check=self.check)
                if not isinstance(entry.format, ArrayFormat):
                    return recode(raw, tensor.format, entry.format, check=self.check)
                arrays = recode_arrays(raw, tensor.format, entry.format, check=self.check)
            if entry.is_first:
                self.pending.keep(tensor, entry.format, start, arrays)
            return arrays[entry.format.part]
        except NonFiniteError as error:
            raise CheckpointError(
                f"tensor {tensor.name!r}: {error} (in rows {start:,} to {stop - 1:,})",
                remedy="the checkpoint is damaged; --allow-nonfinite goes on with it as it is",
            ) from error
        except EngineError as error:
            raise EngineError(f"tensor {tensor.name!r}: {error.message}", remedy=error.remedy) from error
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"tensor {tensor.name!r}: {error}", remedy="convert to bf16 or f32") from error


def _weighed(
    raw: NDArray[np.uint8], entry: Entry, first: int, weights: NDArray[np.float32], *, check: bool
) -> NDArray[np.uint8]:
    """Rows from ``first`` on, each expert's by its own importance."""
    own = entry.tensor.rows // len(weights)
    pieces, at = [], first
    while at < first + len(raw):
        stop = min((at // own + 1) * own, first + len(raw))
        rows = raw[at - first : stop - first]
        pieces.append(recode(rows, entry.tensor.format, entry.format, check=check, importance=weights[at // own]))
        at = stop
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
