"""Compile towers for NPUs from a program: the slow part of opening them, done once, also for another machine's chip.

from edge_llama.compile import compile_for

compile_for("llama-npu", "npu:qnn", soc="SM8650")
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_llama.backends.local_models import found
from edge_llama.backends.onnxruntime.compiler import FOR_NPUS, compile_towers
from edge_llama.backends.towers import read_bundle
from edge_llama.errors import ArtifactError
from edge_llama.model import path_of

__all__ = ["Compilation", "compile_for"]


@dataclass(frozen=True, slots=True)
class Compilation:
    """What was compiled: the ``output`` is a folder that opens as a model on its ``device`` alone.

    Examples:
        >>> from pathlib import Path
        >>> from edge_llama.compile import Compilation
        >>> folder = Path("llama-npu/compiled/npu-qnn")
        >>> done = Compilation(folder, "npu:qnn", "onnxruntime-qnn 2.7.0", "SM8650", ("text",), 700_000_000)
        >>> done.output.name, done.towers
        ('npu-qnn', ('text',))
    """

    output: Path
    device: str
    package: str
    """What compiled it, with its version: ``onnxruntime-qnn 2.7.0``."""
    soc: str
    """The chip; "": this machine's."""
    towers: tuple[str, ...]
    """``text``, ``vision``."""
    nbytes: int
    """Bytes of the folder's files."""


def compile_for(
    model: str | os.PathLike[str],
    device: str,
    *,
    soc: str | None = None,
    share: bool = False,
    provider_options: Sequence[str] = (),
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Compilation:
    """Compile the towers for NPUs in the folder ``model`` for ``device``, into ``compiled`` within that folder.

    Opening the model there uses it, and compiles again what no longer fits. ``soc`` is another machine's chip, such as
    ``SM8650``, or its numbers as ``60:73`` (npu:qnn), where it is then copied. ``share``: both graphs of a text
    tower have their weights in one file; for phones. ``provider_options``: ``KEY=VALUE`` texts. What is there and fits
    stays, unless ``force``. ``on_progress`` is told bytes of graphs and weights: done, and all.

    Raises ArtifactError, OptionError, OutputError or EngineError; what was there before is then as it was.

    Examples:
        >>> from edge_llama.compile import compile_for
        >>> compile_for("small.gguf", "npu:qnn")  # a file has no towers for NPUs
        Traceback (most recent call last):
        edge_llama.errors.ArtifactError: ...small.gguf: a file, and what is compiled lies in the model's folder; ...
    """
    path = found(path_of(model))
    if not path.is_dir():
        raise ArtifactError(f"{path}: a file, and what is compiled lies in the model's folder", remedy=FOR_NPUS)
    output, record = compile_towers(
        read_bundle(path),
        "npu:qnn" if soc and device == "npu" else device,  # only its chips have names
        soc=soc or "",
        options=tuple(provider_options),
        shares=share,
        is_forced=force,
        on_progress=on_progress,
    )
    nbytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Compilation(output, record.device, record.package, record.soc, record.towers, nbytes)
