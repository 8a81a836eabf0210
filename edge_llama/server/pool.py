"""Which models are loaded: each when it is asked for, and what no longer fits is unloaded first."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edge_llama.errors import EdgeLlamaError, InputError
from edge_llama.isolation.remote import IsolatedModel
from edge_llama.model import Model
from edge_llama.opening import open  # noqa: A004 - the API's name
from edge_llama.planning.options import OpenOptions, checked
from edge_llama.server.entries import Entry, entries
from edge_llama.server.failures import ApiError, without_folder
from edge_llama.server.room import Need, needed

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_THREADS = 32
"""That may wait for a model at once: if it hangs, those who ask others don't."""
_OWN_THREADS = 8
"""For opening and closing models."""
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A model that stays loaded as long as this is held."""

    name: str
    """Its own, not an alias."""
    model: Model


@dataclass(eq=False, slots=True)
class _Use:
    """A lease, or who waits for one."""

    holds: bool = False
    """Whether the model may not be unloaded any more."""


@dataclass(eq=False, slots=True)
class _Place:
    """A model of the server, loaded or not."""

    entry: Entry
    held: tuple[Model, Need] | None = None
    """The model while it is loaded, and what it takes."""
    uses: set[_Use] = field(default_factory=set)
    last_used: int = 0
    loading: "asyncio.Task[Model] | None" = None
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS, "edge-llama-model"))
    """For what is asked of the model."""

    @property
    def model(self) -> Model | None:
        """The loaded one."""
        return self.held[0] if self.held else None

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds it."""
        return not any(use.holds for use in self.uses)

    @property
    def has_died(self) -> bool:
        """Whether the model's process is no more, and nobody is still told so by it."""
        return self.is_idle and self.model is not None and _is_dead(self.model)


class Pool:
    """The models of a server. Of its event loop's thread, but for what it has done in others.

    One model is loaded at a time: each is given what the others leave. What has to make room for it is the one that
    nobody has used for longest; one in use is waited for, and new requests for it come after that. A model whose
    process died is loaded anew by the next request, whatever lies in its file by then. With an unloaded model its
    prompt cache is gone, but for what the option ``cache_dir`` keeps.
    """

    def __init__(
        self,
        models: Sequence[str | None],
        options: OpenOptions | None = None,
        *,
        aliases: Mapping[str, str | None] | None = None,
        isolate: bool = True,
        memory: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """``models`` and ``aliases``: see :func:`edge_llama.server.entries.entries`, which also says what it raises.

        All models together take at most ``memory`` bytes; None: what the machine has. ``patience``: seconds that one
        waits for others to be out of use.
        """
        self._options = checked(dict(options or {}))
        self._isolate, self._memory, self._patience = isolate, memory, patience
        self.entries = entries(models, aliases or {})
        self._places = {entry.name: _Place(entry) for entry in self.entries}
        self._turn = asyncio.Lock()
        """Of the model that is being loaded."""
        self._freed = asyncio.Event()
        self._is_awaited = False
        """Whether somebody waits for others to be out of use: who comes later is served later."""
        self._clock = itertools.count(1)
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_OWN_THREADS, "edge-llama-pool")

    @property
    def loaded(self) -> Mapping[str, Model]:
        """The models that are loaded, by name. One whose process died is none: asked, it would start another."""
        return {name: place.model for name, place in self._places.items() if place.model and not _is_dead(place.model)}

    def entry(self, name: str) -> Entry:
        """The model of that name or alias; ApiError if there is none."""
        for entry in self.entries:
            if name == entry.name or name in entry.aliases:
                return entry
        known = ", ".join(entry.name for entry in self.entries)
        raise ApiError(404, f"there is no model {name!r}: there are {known}", code="model_not_found", param="model")

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Lease]:
        """The model of that name or alias, loaded. ApiError if there is none, or it can't be; EngineError.

        Who leaves while it loads does not stop that: others may wait for it, or ask next.
        """
        place = self._places[self.entry(name).name]
        with self._used(place) as use:
            try:
                model = await self._model(place, use)
            except (EdgeLlamaError, ApiError) as error:
                _log.warning("%s: can't be loaded: %s", place.entry.name, error)
                if isinstance(error, InputError):  # by who set the server up, not by who asks
                    raise _not_loaded(place.entry, error) from error
                raise
            yield Lease(place.entry.name, model)

    async def load(self, name: str) -> Model:
        """Have it loaded for those who ask next. Raises what opening it raises, and ApiError as :meth:`lease`."""
        place = self._places[self.entry(name).name]
        with self._used(place) as use:
            return await self._model(place, use)

    @contextmanager
    def _used(self, place: _Place) -> Iterator[_Use]:
        use = _Use()
        place.uses.add(use)
        try:
            yield use
        finally:
            place.uses.discard(use)
            place.last_used = next(self._clock)
            self._freed.set()

    async def _model(self, place: _Place, use: _Use) -> Model:
        """The model, held: at once if it is loaded, unless somebody waits for room. Then it is in turn."""
        if place.loading is None:
            if place.model and not place.has_died and not self._is_awaited:
                use.holds = True
                return place.model
            place.loading = asyncio.create_task(self._load(place))
            place.loading.add_done_callback(_seen)
        return await asyncio.shield(place.loading)

    async def _load(self, place: _Place) -> Model:
        """The model, loaded if it is not; held for all who wait for it."""
        try:
            async with self._turn:
                if place.model is None or place.has_died:
                    await self._open_in(place, asyncio.get_running_loop().time() + self._patience)
                for use in place.uses:
                    use.holds = True
                assert place.model  # noqa: S101 - it was loaded
                return place.model
        finally:
            place.loading = None

    async def _open_in(self, place: _Place, deadline: float) -> None:
        began = time.monotonic()
        await self._unload(place)
        need = await self._room_for(place, deadline)
        model = await _done_in(self._threads, self._open, place.entry.path, need)
        place.held = model, replace(need, context=model.context)
        if len(self._places) > 1:  # the only one is told of by who starts the server
            told = f"loaded in {time.monotonic() - began:.1f} s, {model.n_ctx:,} tokens of context"
            _log.info("%s: %s", place.entry.name, told)

    async def _room_for(self, place: _Place, deadline: float) -> Need:
        """What the model takes, once it fits: others are unloaded for that, or waited for until ``deadline``."""
        try:
            while True:
                self._freed.clear()
                loaded = [other for other in self._places.values() if other.held]
                if (need := await self._need(place, loaded)) is not None:
                    return need
                busy = [other for other in loaded if not other.is_idle]
                # Where the busy ones alone leave too little, those that are idle would be unloaded for nothing.
                can_fit = len(busy) < len(loaded) and await self._need(place, busy) is not None
                if can_fit and (idle := [other for other in loaded if other.is_idle]):
                    oldest = min(idle, key=lambda other: other.last_used)
                    _log.info("%s: unloaded for %s", oldest.entry.name, place.entry.name)
                    await self._unload(oldest)
                else:
                    self._is_awaited = True
                    await self._wait_for_others(place, busy, deadline)
        finally:
            self._is_awaited = False

    async def _need(self, place: _Place, staying: Sequence[_Place]) -> Need | None:
        """What the model takes; None if it does not fit beside those that stay, were all others unloaded."""
        held = [other.held for other in staying if other.held]
        leaving = [other.held for other in self._places.values() if other.held and other not in staying]
        return await _done_in(self._threads, needed, place.entry.path, self._options, held, self._memory, leaving)

    async def _wait_for_others(self, place: _Place, busy: Sequence[_Place], deadline: float) -> None:
        """Until somebody has left one since it was last asked what fits."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._freed.wait()
        except TimeoutError:
            names = ", ".join(other.entry.name for other in busy)
            raise ApiError(
                503,
                f"the model {place.entry.name} does not fit beside {names}, in use for {self._patience:,.0f} seconds; "
                "ask again later, or ask that one",
                code="busy",
                headers={"Retry-After": "5"},
            ) from None

    def _open(self, path: Path, need: Need) -> Model:
        options = self._options
        if need.context.is_cut:  # by what others hold, which the system may call available
            options = {**options, "n_ctx": need.context.n_ctx}
        model = open(path, isolate=self._isolate, **options)
        if self._is_closed:
            model.close()
        return model

    async def _unload(self, place: _Place) -> None:
        model, place.held = place.model, None
        if model:
            await _done_in(self._threads, model.close)

    async def in_thread(self, work: Callable[..., _T], model: Model, *given: Any) -> _T:
        """``work(model, *given)`` in one of the model's threads. Who is cancelled leaves what has begun to its end."""
        own = (place.threads for place in self._places.values() if place.model is model)
        return await _done_in(next(own, self._threads), work, model, *given)

    async def close(self) -> None:
        """Unload all. A model that is still being loaded is closed by its thread."""
        self._is_closed = True
        loading = [place.loading for place in self._places.values() if place.loading]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        for place in self._places.values():
            await self._unload(place)
        for threads in (self._threads, *(place.threads for place in self._places.values())):
            threads.shutdown(wait=False, cancel_futures=True)


async def _done_in(threads: ThreadPoolExecutor, work: Callable[..., _T], *given: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *given))


def _is_dead(model: Model) -> bool:
    return isinstance(model, IsolatedModel) and model.has_died


def _not_loaded(entry: Entry, error: InputError) -> ApiError:
    return ApiError(
        503,
        f"the model {entry.name} can't be loaded: {without_folder(str(error))}",
        code="model_not_loaded",
        headers={"x-should-retry": "false"},  # OpenAI's and Anthropic's clients ask again otherwise
    )


def _seen(task: "asyncio.Task[Model]") -> None:
    """Its error is that of those who wait for it; where all have left, nobody's."""
    if not task.cancelled():
        task.exception()
