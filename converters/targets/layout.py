"""The plan of an output: every size is known from shapes and formats alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from converters.checkpoint import Tensor
from edge_llama.formats import Format


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the output, and the format in which it is stored."""

    tensor: Tensor
    format: Format
    wanted: Format | None = None
    """What the recipe would have chosen if the rows were whole blocks of it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return prod(self.tensor.shape[:-1]) * self.format.row_bytes(self.tensor.columns)


@dataclass(frozen=True, slots=True)
class Layout:
    """``header``, then each entry's data padded to ``alignment``, go to ``stream``; ``files`` are small ones beside it.

    With ``stream`` empty the output is a single file; otherwise it is a folder and ``stream`` a file in it.
    """

    header: bytes
    entries: tuple[Entry, ...]
    alignment: int = 1
    stream: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def source_bytes(self) -> int:
        """Bytes to be read."""
        return sum(entry.tensor.nbytes for entry in self.entries)

    @property
    def output_bytes(self) -> int:
        """Bytes to be written."""
        data = sum(entry.nbytes + self.padding(entry) for entry in self.entries)
        return len(self.header) + data + sum(map(len, self.files.values()))

    def padding(self, entry: Entry) -> int:
        """Zero bytes after an entry's data."""
        return -entry.nbytes % self.alignment
