"""Checkpoint to artifact: the one loop, in full view.

``convert`` opens the source, lays out the whole output (every size is known from shapes and formats), writes the
header and then streams the tensors after it: rows are read, recoded and written in chunks, on all cores, with a few
chunks in memory. The output appears complete or not at all.
"""

import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from converters import lora as adapters
from converters.checkpoint import Checkpoint
from converters.sources import open_checkpoint
from converters.targets import choose
from converters.targets.layout import Entry, Layout
from edge_llama.errors import CheckpointError, OutputError
from quant.kernels import NonFiniteError, recode

__all__ = ["Plan", "Progress", "convert", "plan"]

Progress = Callable[[int, int], None]
"""Called with the source bytes finished so far, and how many there are."""

_CHUNK = 1 << 20  # weights recoded at once: 4 MB as float32, a good fit for a core's cache


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do: nothing was written, no weight was read."""

    checkpoint: Checkpoint
    layout: Layout
    quant: str
    warnings: tuple[str, ...] = ()
    """What a person should know before using the output, a sentence each."""


def plan(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    quant: str | None = None,
    to: str | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Plan:
    """Lay out the conversion of ``source`` to ``output``; raises what :func:`convert` would raise before it starts."""
    target, quant = choose(Path(output), to, quant)
    base = open_checkpoint(Path(source))
    checkpoint = adapters.merge(base, Path(lora)) if lora is not None else base
    layout = target.lay_out(checkpoint, quant)
    return Plan(checkpoint, layout, quant, _warnings(layout) + _merge_warnings(base, checkpoint))


def _merge_warnings(base: Checkpoint, merged: Checkpoint) -> tuple[str, ...]:
    """An adapter was trained on one set of weights; a quantized base is another."""
    changed = [tensor for name, tensor in base.tensors.items() if merged.tensors[name] is not tensor]
    quantized = sum(tensor.format.is_quantized for tensor in changed)
    if not quantized:
        return ()
    return (f"the adapter is merged into {quantized} quantized tensors; the full-precision base would be more exact",)


def _warnings(layout: Layout) -> tuple[str, ...]:
    """Rounding what was already rounded to another grid loses quality twice."""
    pairs = [(entry.tensor.format, entry.format) for entry in layout.entries]
    twice = Counter(f"{old} to {new}" for old, new in pairs if old.is_quantized and new.is_quantized and old is not new)
    if not twice:
        return ()
    counts = ", ".join(f"{count} from {pair}" for pair, count in twice.most_common())
    tensors = f"{twice.total()} of {len(pairs)} tensors are quantized a second time ({counts})"
    return (f"{tensors}: quality is lost twice; convert the full-precision checkpoint if you can get it",)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    quant: str | None = None,
    to: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    force: bool = False,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Plan:
    """Convert the checkpoint at ``source`` into ``output`` in one streaming pass.

    ``quant`` names a recipe (``q4_k_m`` if None), ``to`` a target (from the output's name if None), ``lora`` the
    folder of a peft adapter to merge on the way. An existing output is replaced only with ``force``. Raises
    CheckpointError, OptionError or OutputError; then no output exists.
    """
    work = plan(source, output, quant=quant, to=to, lora=lora)
    done, total = 0, work.layout.source_bytes
    if lora is not None and Path(lora).resolve() == Path(output).resolve():
        raise OutputError(f"{output}: output and adapter are the same", remedy="give another name")
    with _destination(Path(output), work, force) as file:
        file.write(work.layout.header)
        for entry, data, is_last in _recoded(work.layout, threads or _cpu_count()):
            file.write(data.data)
            if is_last:
                file.write(bytes(work.layout.padding(entry)))
            done += data.shape[0] * entry.tensor.format.row_bytes(entry.tensor.columns)
            if on_progress:
                on_progress(done, total)
    return work


def _recoded(layout: Layout, threads: int) -> Iterator[tuple[Entry, NDArray[np.uint8], bool]]:
    """Each entry's rows in its format, in order; a few chunks are worked on ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="convert")
    ahead: deque[tuple[Entry, Future[NDArray[np.uint8]], bool]] = deque()
    try:
        for entry in layout.entries:
            for start, stop in _chunks(entry):
                ahead.append((entry, pool.submit(_recode, entry, start, stop), stop == entry.tensor.rows))
                if len(ahead) > 2 * threads:
                    entry_, future, is_last = ahead.popleft()
                    yield entry_, future.result(), is_last
        for entry_, future, is_last in ahead:
            yield entry_, future.result(), is_last
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(entry: Entry) -> Iterator[tuple[int, int]]:
    tensor = entry.tensor
    rows = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
    for start in range(0, tensor.rows, rows):
        yield start, min(start + rows, tensor.rows)


def _recode(entry: Entry, start: int, stop: int) -> NDArray[np.uint8]:
    tensor = entry.tensor
    try:
        return recode(tensor.read(start, stop), tensor.format, entry.format)
    except NonFiniteError as error:
        raise CheckpointError(
            f"tensor {tensor.name!r}: {error} (in rows {start:,} to {stop - 1:,})", remedy="the checkpoint is damaged"
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"tensor {tensor.name!r}: {error}", remedy="convert to bf16 or f32") from error


@contextmanager
def _destination(output: Path, work: Plan, force: bool) -> Iterator[BinaryIO]:
    """The stream to write; on leaving without an error it is synced and takes its place, otherwise nothing remains."""
    output = output.absolute()
    _check_output(output, work, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output.parent}: cannot be written: {error.strerror}") from error
    try:
        new = partial / output.name
        if work.layout.stream:
            new.mkdir()
        for name, content in work.layout.files.items():
            (new / name).write_bytes(content)
        with (new / work.layout.stream).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if output.is_dir():
            output.replace(partial / "replaced")
        new.replace(output)
    except OSError as error:
        raise OutputError(f"{output}: writing failed: {error.strerror}", remedy="nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_output(output: Path, work: Plan, force: bool) -> None:
    source = work.checkpoint.path.resolve()
    if output.resolve() == source:
        raise OutputError(f"{output}: output and source are the same", remedy="give another name")
    if output.exists() and not force:
        raise OutputError(f"{output}: already exists", remedy="give another name, or --force to replace it")
    if output.is_dir() != bool(work.layout.stream) and output.exists():
        raise OutputError(
            f"{output}: is a {'folder' if output.is_dir() else 'file'}, the output is not", remedy="give another name"
        )
    existing = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < work.layout.output_bytes:
        raise OutputError(
            f"{existing}: {free:,} bytes are free but the output needs {work.layout.output_bytes:,}", remedy="make room"
        )


def _cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
