"""The engines that are installed: their versions, whether they work here, and what would be used."""

from edge_llama.backends import registry
from edge_llama.backends.base import EngineState


def engines(*, again: bool = False) -> list[EngineState]:
    """Every engine that edge-llama knows; its check is made ``again`` even if a verdict is remembered."""
    return [engine.state(again=again) for engine in registry.engines()]
