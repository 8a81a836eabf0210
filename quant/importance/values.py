"""Sums of squares of what matrices are multiplied by, and what columns are weighed by for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ArtifactError, OptionError

OWN_KEYS = "edge_llama."
"""How keys begin that llama.cpp does not know: what the values are of."""
MODEL, TEXTS, HASHES = (f"{OWN_KEYS}importance.{name}" for name in ("model", "texts", "text_hashes"))
"""Keys of the identity of the model, and of the texts that were measured with: their SHA-256, and what tells an overlap
with others (:func:`edge_llama.fidelity.texts.hashes`)."""
AGAIN = "calibrate again: edge-llama calibrate --for importance"
MOST_COUNT = 1 << 53
"""More tokens than anybody measures with; float64 counts them exactly up to here."""
FEW = 100
"""Tokens: a mean of squares over so many is good to a tenth or so."""
_EMBEDDING = "token_embd.weight"


class Sums(NamedTuple):
    """Of one tensor: ``sums`` float32 (n_experts, columns) of squares over ``counts`` int64 (n_experts,) tokens.

    A matrix that all tokens go through is one expert; so is all of a file in the older form, which counts chunks.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """An importance matrix: sums by the tensors' names in GGUF, and what they are over."""

    entries: Mapping[str, Sums]
    n_chunks: int
    chunk_size: int
    """Tokens of a chunk; 0 if the file does not say it, whose counts are then chunks."""
    datasets: tuple[str, ...] = ()
    """Names of the texts that were measured with."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else the file says, in keys of our own: :data:`MODEL`, :data:`TEXTS`, :data:`HASHES`."""
    path: Path | None = None
    """The file that it was read from."""

    def weights(self, name: str) -> NDArray[np.float32]:
        """What ``llama-quantize`` weighs the columns of a tensor by: the mean of squares, float32 (n_experts, columns).

        An expert that no token was given to weighs all its columns alike, by 1. KeyError if there is none of ``name``.
        """
        sums, counts = self.entries[name]
        has_none = (counts == 0)[:, None]
        divisors = np.where(has_none, np.float32(1), counts.astype(np.float32)[:, None])
        return np.where(has_none, np.float32(1), sums / divisors)

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The weights of a tensor of ``shape`` (experts before rows, columns last), float32 (n_experts, columns).

        None if nothing is known of it. OptionError if what is known is of another shape, but for the embedding, which
        is then left alone, as ``llama-quantize`` does.
        """
        if name not in self.entries:
            return None
        n_experts, columns = prod(shape[:-2]), shape[-1]
        weights = self.weights(name)
        if weights.size == n_experts * columns:
            return weights.reshape(n_experts, columns)
        if name == _EMBEDDING:
            return None
        raise OptionError(
            f"{self.label}: {name} has {weights.size:,} values, the model's {n_experts} x {columns:,}",
            remedy=f"it is of another model; {AGAIN}",
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """OptionError if it is of another model than the one with tensors of these names and shapes."""
        for name in self.entries:
            if name in shapes:
                self.for_tensor(name, shapes[name])
            elif name.startswith("blk."):
                raise OptionError(
                    f"{self.label}: has {name}, which the model has not",
                    remedy=f"it is of another model; {AGAIN}",
                )
        if not self.entries.keys() & shapes.keys():
            raise OptionError(
                f"{self.label}: has none of the model's tensors", remedy=f"it is of another model; {AGAIN}"
            )

    def with_few_tokens(self, few: int = FEW) -> dict[str, list[int]]:
        """Experts that fewer than ``few`` tokens were given to, by the tensors' names; only tensors with such."""
        found = {name: np.flatnonzero(counts < few).tolist() for name, (_, counts) in self.entries.items()}
        return {name: experts for name, experts in found.items() if experts and len(self.entries[name].counts) > 1}

    @property
    def label(self) -> str:
        """What errors call it."""
        return str(self.path or "the importance matrix")


def check_values(path: Path, entries: Mapping[str, Sums]) -> None:
    """ArtifactError for what nothing can be weighed by; ``path`` is for its message."""
    if not entries:
        raise ArtifactError(f"{path}: has no tensor's values", remedy=AGAIN)
    for name, (sums, counts) in entries.items():
        if counts.min() < 0 or counts.max() > MOST_COUNT:
            wrong = counts[(counts < 0) | (counts > MOST_COUNT)][0]
            raise ArtifactError(f"{path}: {name}: counts {wrong:,} tokens", remedy=AGAIN)
        seen = sums[counts > 0]
        for what, is_wrong in (("NaN or infinite", ~np.isfinite(seen)), ("negative", seen < 0)):
            if number := int(np.count_nonzero(is_wrong)):
                raise ArtifactError(f"{path}: {name}: {number:,} of its values are {what}", remedy=AGAIN)
        if not seen.any(axis=-1).all():
            number = int(np.flatnonzero(counts > 0)[~seen.any(axis=-1)][0])
            which = f" of expert {number}" if len(counts) > 1 else ""
            raise ArtifactError(f"{path}: {name}: the values{which} are all zero", remedy=AGAIN)
