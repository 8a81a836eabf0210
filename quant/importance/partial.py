"""What was measured until now, beside the output: who is killed goes on from it, to the same numbers.

A GGUF like the one that it becomes, but with sums in float64, as they are added up.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ArtifactError, OutputError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Header, Value, ValueType, encode_header, read_header, string
from edge_llama.host.atomic import PARTIAL, new_file
from edge_llama.host.regular_files import opened
from quant.importance.values import OWN_KEYS

Added = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Sums of squares (n_experts, columns), and the tokens (n_experts,) that they are over."""
_TYPE, _KEY, _DONE = "imatrix.partial", f"{OWN_KEYS}importance.of", f"{OWN_KEYS}importance.done"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_DTYPES = {"f64": "<f8", "i64": "<i8"}


class Partial:
    """The file ``.OUTPUT.partial``; ``key`` says what is measured, of which model, with which texts."""

    def __init__(self, output: Path, key: str) -> None:
        self.path, self._key = output.with_name(f".{output.name}{PARTIAL}"), key

    def read(self) -> tuple[int, dict[str, Added]]:
        """How many chunks it is of, and their sums; none if there is no such file, or it is of something else."""
        with suppress(ArtifactError, OSError, KeyError, ValueError):
            header = read_header(self.path)
            if (header.get("general.type", str, ""), header.get(_KEY, str, "")) == (_TYPE, self._key):
                return header.get(_DONE, int, 0), dict(_entries(header))
        return 0, {}

    def write(self, done: int, entries: Mapping[str, Added]) -> None:
        """Replace what it has, as a whole. OutputError if it can't be written."""
        fields = {"general.type": string(_TYPE), _KEY: string(self._key), _DONE: Value(ValueType.UINT64, done)}
        tensors: list[tuple[str, NDArray[np.float64] | NDArray[np.int64]]] = []
        for name, (sums, counts) in entries.items():
            tensors += [(name + _SUMS, sums), (name + _COUNTS, counts)]
        formats = [FORMATS["f64" if values.dtype == np.float64 else "i64"] for _, values in tensors]
        table = [(name, values.shape, each) for (name, values), each in zip(tensors, formats, strict=True)]
        header, offsets = encode_header(fields, table)
        try:
            with new_file(self.path) as file:
                file.write(header)
                for (_, values), offset in zip(tensors, offsets, strict=True):
                    file.seek(offset)
                    file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        except OSError as error:
            told = f"{self.path}: what was measured until now can't be kept: {error.strerror}"
            raise OutputError(told, remedy="make room there, or give another name") from error

    def remove(self) -> None:
        """What it has is in the output now."""
        self.path.unlink(missing_ok=True)


def _entries(header: Header) -> Iterator[tuple[str, Added]]:
    with opened(header.path) as file:
        found = {}
        for info in header.tensors:
            file.seek(info.offset)
            data = np.frombuffer(file.read(info.nbytes), _DTYPES[info.format.name])
            found[info.name] = data.reshape(info.shape)
    for name, sums in found.items():
        if name.endswith(_SUMS):
            plain = name.removesuffix(_SUMS)
            yield plain, (sums, found[plain + _COUNTS])
