"""What the prompt cache is made of: sequences of the engine, copies in memory and on disk, and whose they are."""

import weakref
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.runtime.disk_cache import Stored
from edge_llama.runtime.radix_tree import shared_length
from edge_llama.runtime.session_file import State

Tokens = NDArray[np.int32]


class CacheOwner:
    """Whose a KV cache is: a chat, which goes on from where it was."""

    __slots__ = ("__weakref__", "adapters", "tag", "tokens")

    def __init__(self) -> None:
        self.tokens: Tokens | None = None
        """What its last answer left in the cache, int32 ``(n,)``; None before."""
        self.adapters: AdapterSet = ()
        """What that was computed with."""
        self.tag = ""
        """The conversation's, under which it is kept on disk."""


@dataclass(eq=False, slots=True)
class Held:
    """A sequence of the engine that holds something."""

    number: int
    adapters: AdapterSet = ()
    """What it was computed with."""
    tokens: list[int] = field(default_factory=list)
    logits: NDArray[np.float32] | None = None
    """Those of the last position, if they were kept."""
    fixed: int = 0
    """How many tokens from the first were prefilled in slices that depend on nothing else: see ``slice_size``."""
    is_running: bool = True
    is_scattered: bool = False
    """Whether its cells lie among those of others that were appended in the same steps."""
    owner: weakref.ref[CacheOwner] | None = None
    tag: str = ""
    """Of which conversation it is; "" if of none."""
    indexed: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    """With which tokens it is in the tree: while it is running, those that it will have after its prompt."""


Entry = Held | State | Stored
"""What the tree leads to: a sequence, a copy in memory, a copy on disk."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a prompt left what was in the cache: after ``position`` tokens, with ``wanted`` in place of ``cached``."""

    position: int
    cached: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """A sequence for a request: ``reused`` tokens of its prompt are in it, and after them nothing."""

    held: Held
    reused: int
    divergence: Divergence | None


def divergence(prompt: Tokens, length: int, found: Entry | None) -> Divergence | None:
    """Where the prompt leaves what was found, if it does so within both."""
    if found is None:
        return None
    ours = np.array(found.tokens[length : length + 8], np.int32)
    theirs = prompt[length : length + 8]
    at = shared_length(ours, theirs)
    if at == len(ours) or at == len(theirs):
        return None
    return Divergence(length + at, tuple(map(int, ours[at:])), tuple(map(int, theirs[at:])))
