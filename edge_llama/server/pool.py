"""Which models there are by name, and which of them are loaded."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from edge_llama.backends.local_models import found
from edge_llama.model import Model
from edge_llama.opening import open  # noqa: A004 - the API's name
from edge_llama.planning.options import OpenOptions
from edge_llama.server.failures import ApiError

_T = TypeVar("_T")
_THREADS = 64
"""That may wait for a model's process at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that may be asked for."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """A model that stays loaded as long as this is held."""

    name: str
    """Its own, not an alias."""
    model: Model


class Pool:
    """The models of a server. Of its event loop's thread, but for what it has done in others."""

    def __init__(
        self,
        models: Sequence[str | None],
        options: OpenOptions | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        isolate: bool = True,
    ) -> None:
        """``models`` are files, folders and names, None is the default one; ``aliases`` are other names for them."""
        self._options = options or OpenOptions()
        self._isolate = isolate
        self.entries = [_entry(model, aliases or {}) for model in models]
        self._loaded: dict[str, Model] = {}
        self._lock = asyncio.Lock()
        self._limiter = anyio.CapacityLimiter(_THREADS)

    @property
    def loaded(self) -> Mapping[str, Model]:
        """The models that are loaded, by name."""
        return self._loaded

    def entry(self, name: str) -> Entry:
        """ApiError if there is no such model."""
        for entry in self.entries:
            if name == entry.name or name in entry.aliases:
                return entry
        known = ", ".join(entry.name for entry in self.entries)
        raise ApiError(404, f"there is no model {name!r}: there are {known}", code="model_not_found", param="model")

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Lease]:
        """The model of that name or alias, loaded. Raises ApiError, and what opening it raises."""
        entry = self.entry(name)
        async with self._lock:
            if entry.name not in self._loaded:
                self._loaded[entry.name] = await self.in_thread(self._open, entry.path)
        yield Lease(entry.name, self._loaded[entry.name])

    def _open(self, path: Path) -> Model:
        return open(path, isolate=self._isolate, **self._options)

    async def in_thread(self, work: Callable[..., _T], *given: Any) -> _T:
        """``work`` in a thread, of which there are enough for all that may wait for a model."""
        return await anyio.to_thread.run_sync(partial(work, *given), abandon_on_cancel=True, limiter=self._limiter)

    async def close(self) -> None:
        """Unload all."""
        for model in self._loaded.values():
            await self.in_thread(model.close)
        self._loaded.clear()


def _entry(model: str | None, aliases: Mapping[str, str]) -> Entry:
    path = found(model)
    name = path.stem if path.is_file() else path.name
    return Entry(name, path, tuple(alias for alias, target in aliases.items() if target == name))
