"""The plan of an output: every size is known from shapes and formats alone."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Stored, Tensor
from edge_llama.files.formats import FORMATS, Format
from edge_llama.files.manifest import StoredFile
from quant.nbits import ArrayFormat, is_exact

Closing = Callable[[Mapping[str, StoredFile]], Mapping[str, bytes]]
"""Makes files that tell of all others, from their sizes and hashes by name; their own sizes depend on no hash."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the output, and the format in which it is stored."""

    tensor: Tensor
    format: Format
    wanted: Format | None = None
    """What the recipe would have chosen if the rows were whole blocks of it."""
    importance: Callable[[], NDArray[np.float32]] | None = field(default=None, repr=False, compare=False)
    """Gives what its columns are weighed by, float32 (n_experts, columns), a row for as many of its rows each."""

    def stored_bytes(self, alignment: int) -> int:
        """Bytes of its data and the zeros after it."""
        return self.nbytes + -self.nbytes % alignment

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return prod(self.tensor.shape[:-1]) * self.format.row_bytes(self.tensor.columns)

    @property
    def kind(self) -> str:
        """How a matrix is stored, whatever arrays it becomes."""
        return self.format.grid.name if isinstance(self.format, ArrayFormat) else self.format.name

    @property
    def is_first(self) -> bool:
        """Whether it is not a further array (scales, zero points, its shape) of a matrix."""
        if isinstance(self.format, ArrayFormat):
            return self.format.part == "numbers"
        return self.format is not FORMATS["i64"]  # no weights are stored so

    @property
    def is_exact(self) -> bool:
        """Whether its numbers are those of a source that is quantized."""
        return self.tensor.format.is_quantized and (
            self.format is self.tensor.format or is_exact(self.tensor.format, self.format)
        )

    @property
    def requantized(self) -> str:
        """From which format to which it is quantized a second time; empty: it is not."""
        source = self.tensor.format
        if source.is_quantized and self.format.is_quantized and not self.is_exact:
            return f"{source} to {self.kind}"
        return self.tensor.requantized


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the output: ``header``, then each entry's data padded to ``alignment``.

    ``seal(header, hashes)`` is the final header, of the same length, once the SHA-256 of each entry's data is known.
    """

    name: str
    header: bytes
    entries: tuple[Entry, ...]
    alignment: int = 1
    seal: Callable[[bytes, Sequence[bytes]], bytes] | None = None

    def stored_bytes(self, entry: Entry) -> int:
        """Bytes of an entry's data and the zeros after it."""
        return entry.stored_bytes(self.alignment)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(map(self.stored_bytes, self.entries))


@dataclass(frozen=True, slots=True)
class Layout:
    """``parts`` in the order in which they are written, small ``files`` beside them, by name, and what comes last.

    ``is_folder``: all of these go into a folder, the output, where a name may have folders of its own (``a/b``);
    otherwise the parts lie where the output is named.
    """

    parts: tuple[Part, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    is_folder: bool = False
    closing: Closing | None = None

    @property
    def small_files(self) -> dict[str, bytes]:
        """``files`` and those of ``closing``, here without hashes."""
        if self.closing is None:
            return dict(self.files)
        sizes = {part.name: part.nbytes for part in self.parts}
        sizes |= {name: len(content) for name, content in self.files.items()}
        return {**self.files, **self.closing({name: StoredFile(size) for name, size in sizes.items()})}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files."""
        return (*(part.name for part in self.parts), *self.small_files)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of all parts."""
        return tuple(entry for part in self.parts for entry in part.entries)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Rounding what was already rounded to another grid loses quality twice."""
        matrices = [entry for entry in self.entries if entry.is_first]
        twice = Counter(entry.requantized for entry in matrices if entry.requantized)
        if not twice:
            return ()
        counts = ", ".join(f"{count} from {pair}" for pair, count in twice.most_common())
        tensors = f"{twice.total()} of {len(matrices)} tensors are quantized a second time ({counts})"
        return (f"{tensors}: quality is lost twice; convert the full-precision checkpoint if you can get it",)

    @property
    def bytes_read(self) -> tuple[int, ...]:
        """For each entry the bytes, as files hold them, that no entry before it needs."""
        counts, seen = [], set[Stored]()
        for entry in self.entries:
            counts.append(sum(stored.nbytes for stored in entry.tensor.stored - seen))
            seen |= entry.tensor.stored
        return tuple(counts)

    @property
    def source_bytes(self) -> int:
        """Bytes of the files' tensors that are read, an adapter's too, each once, whatever is written of them."""
        return sum(self.bytes_read)

    @property
    def output_bytes(self) -> int:
        """Bytes to be written."""
        return sum(part.nbytes for part in self.parts) + sum(map(len, self.small_files.values()))
