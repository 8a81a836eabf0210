"""What a conversion writes: one file per kind. A target lays out the whole output before a weight is read."""

from pathlib import Path
from types import ModuleType

from converters.targets import gguf, safetensors
from edge_llama.errors import OptionError

TARGETS: dict[str, ModuleType] = {"gguf": gguf, "safetensors": safetensors}
"""Each has ``QUANTS``, ``DEFAULT_QUANT`` and ``lay_out(checkpoint, quant, name, options) -> Layout``."""


def choose(output: Path, to: str | None, quant: str | None) -> tuple[ModuleType, str]:
    """The target module and the recipe for ``--to`` and ``--quant``; OptionError lists what there is."""
    name = to or ("gguf" if output.suffix == ".gguf" else None)
    if name is None:
        raise OptionError(
            f"{output}: what shall be written?", remedy="end the name in .gguf, or say --to gguf|safetensors"
        )
    target = TARGETS.get(name)
    if target is None:
        raise OptionError(f"--to {name}: unknown", remedy=f"known: {', '.join(TARGETS)}")
    quant = quant or target.DEFAULT_QUANT
    if quant not in target.QUANTS:
        raise OptionError(f"--quant {quant}: not for {name}", remedy=f"known: {', '.join(target.QUANTS)}")
    return target, quant
