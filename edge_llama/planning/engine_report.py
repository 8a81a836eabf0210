"""The engines that are installed: their versions, whether they work here, and what would be used."""

from importlib.metadata import EntryPoint

from edge_llama.backends import registry
from edge_llama.backends.base import EngineState
from edge_llama.errors import EngineError


def engines(*, again: bool = False) -> list[EngineState]:
    """Every engine that edge-llama knows; its check is made ``again`` even if a verdict is remembered."""
    own = [engine.state(again=again) for engine in registry.own_engines()]
    return own + [_registered(entry, again=again) for entry in registry.registrations()]


def _registered(entry: EntryPoint, *, again: bool) -> EngineState:
    try:
        return registry.registered(entry).state(again=again)
    except EngineError as error:
        return EngineState(entry.name, "", None, problem=error.message, remedy=error.remedy)
