"""What a tower takes of a device's memory and how fast it is there, before it is loaded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a text tower takes, as much as it ever has at once when its context is full."""

    weights: int
    kv_cache: int
    compute: int
    """What lies between a batch's input and its logits, and what kernels work with."""
    vocabulary: int
    """Texts and merges of tokens, in the engine's tables and in ours."""
    engine: int
    """Graphs, threads' stacks and what else does not depend on sizes."""

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.vocabulary + self.engine

    @property
    def beside_weights(self) -> int:
        """All but the weights."""
        return self.nbytes - self.weights


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that a text tower takes for a token: of an answer, what each earlier one adds to that, of a prompt."""

    decode: float
    decode_per_position: float
    prefill: float

    def decoding(self, depth: int) -> float:
        """Seconds for a token of an answer after ``depth`` others."""
        return self.decode + depth * self.decode_per_position
