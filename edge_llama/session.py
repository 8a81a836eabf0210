"""A KV cache and the tokens in it."""

from collections.abc import Sequence

from edge_llama.backends.base import TextTower
from edge_llama.errors import ContextFullError
from edge_llama.pace import Pace, Stopwatch


class Session:
    """Reads prompts into a tower's cache, and reads nothing twice that the cache already holds."""

    def __init__(self, tower: TextTower, pace: Pace | None = None) -> None:
        """With a ``pace`` the number of threads follows the machine's load from token to token."""
        self._tower = tower
        self._pace = pace
        self.tokens: list[int] = []

    @property
    def is_full(self) -> bool:
        """Whether no further token fits."""
        return len(self.tokens) >= self._tower.n_ctx

    def read(self, prompt: Sequence[int]) -> int:
        """Bring the cache to hold exactly ``prompt``, its last position's logits ready; the number of tokens reused.

        Raises ContextFullError before any work; AbortedError leaves what was read so far in the cache.
        """
        if len(prompt) >= self._tower.n_ctx:
            raise ContextFullError(len(prompt), self._tower.n_ctx)
        reused = min(self._shared(prompt), len(prompt) - 1)
        reused = self.rewind(reused)
        step = self._tower.n_batch
        for start in range(reused, len(prompt), step):
            self.append(*prompt[start : start + step])
        return reused

    def append(self, *tokens: int) -> None:
        """Decode at most ``n_batch`` tokens after those in the cache."""
        watch = Stopwatch()
        try:
            self._tower.decode(tokens)
        except BaseException:
            del self.tokens[self._tower.length :]  # a recurrent state is lost with what failed
            raise
        self.tokens += tokens
        if self._pace:
            self._tower.use_threads(self._pace.after(*watch.read(), len(tokens)))

    def rewind(self, length: int) -> int:
        """Keep the first ``length`` tokens, or none where the engine can't go back; how many are kept."""
        if length < len(self.tokens):
            del self.tokens[self._tower.rewind(length) :]
        return len(self.tokens)

    def _shared(self, prompt: Sequence[int]) -> int:
        pairs = enumerate(zip(self.tokens, prompt, strict=False))
        return next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(self.tokens), len(prompt)))
