"""W4A16: linear layers in 4 bits with a scale for each group, as compressed-tensors, transformers and vLLM read them.

Source: ``compressors/pack_quantized`` and ``quantization/quant_config.py`` of compressed-tensors, of the version that
``VERSION`` names (github.com/vllm-project/compressed-tensors). A layer's ``weight`` becomes ``weight_packed``, eight
numbers plus 8 in a word of 32 bits, the first lowest; ``weight_scale``; and ``weight_shape``. All else is stored in the
scales' dtype, which is that of the activations: an engine casts scales to the dtype that it serves in, and numbers were
chosen by scales as stored.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.architectures import Architecture, ServingTensors
from converters.checkpoint import Tensor
from converters.layout import Entry
from converters.options import Options
from converters.targets.safetensors.shards import Unit
from converters.tensors.constant import constant
from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, FORMATS, Format
from quant.nbits import BLOCKS, Grid

NAME = "w4a16"
SCALES = ("bf16", "f16")
VERSION = "0.17.0"
_EXACT = FORMATS["q4_0"]
_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear layers are quantized."""

    group: int
    scales: Format

    @property
    def grid(self) -> Grid:
        """What a matrix becomes."""
        return Grid(4, self.group, scales=self.scales)

    def config(self, kept_modules: Collection[str]) -> dict[str, Any]:
        """config.json's ``quantization_config``; ``kept_modules`` match names of linear layers that are not packed."""
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        group = {
            "targets": ["Linear"],
            "format": "pack-quantized",
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "version": VERSION,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [f"re:{pattern}" for pattern in (r".*lm_head$", *kept_modules)],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def check(options: Options) -> None:
    """OptionError for a group or a dtype that there is not."""
    if options.group not in (None, *BLOCKS):
        raise OptionError(f"--group {options.group}: unknown", remedy=f"known: {_choices(BLOCKS)}")
    if options.scale_dtype not in (None, *SCALES):
        raise OptionError(f"--scale-dtype {options.scale_dtype}: unknown", remedy=f"known: {_choices(SCALES)}")


def choose(tensors: ServingTensors, architecture: Architecture, options: Options) -> Scheme:
    """The scheme for these tensors: as asked, and where that leaves a choice the nearest to the source.

    Q4_0's numbers and scales go over as they are, by 32 with float16. OptionError for what doesn't fit, with what does.
    """
    is_q4_0 = 2 * sum(tensor.format is _EXACT for tensor in tensors.linears.values()) > len(tensors.linears)
    asked = options.scale_dtype
    if asked == "f16" and architecture.overflows_float16:
        raise OptionError(
            f"--scale-dtype f16: the activations of {architecture.called} overflow float16, and vLLM refuses it",
            remedy="--scale-dtype bf16",
        )
    group = _group(tensors.linears, options.group, prefers_least=is_q4_0)
    return Scheme(group, FORMATS[asked or _scales(tensors.others, architecture, is_q4_0=is_q4_0)])


def units(tensors: ServingTensors, scheme: Scheme) -> Iterator[tuple[str, Unit]]:
    """What is stored, by the name of the source's tensor."""
    for name, tensor in tensors.linears.items():
        layer = name.removesuffix("weight")
        numbers, scales = (scheme.grid.array(part) for part in scheme.grid.parts)
        shape = constant(f"{layer}weight_shape", np.array(tensor.shape, np.int64))
        packed, scale = tensor.renamed(f"{layer}weight_packed"), tensor.renamed(f"{layer}weight_scale")
        yield name, (Entry(packed, numbers), Entry(scale, scales), Entry(shape, shape.format))
    for name, tensor in tensors.others.items():
        yield name, (Entry(tensor, scheme.scales),)


def _group(linears: Mapping[str, Tensor], asked: int | None, *, prefers_least: bool) -> int:
    """The group: ``asked``, or the largest that divides all rows, which most kernels take; else the least."""
    fitting = [group for group in BLOCKS if all(tensor.columns % group == 0 for tensor in linears.values())]
    if asked in fitting or (asked is None and fitting):
        return asked or (min if prefers_least else max)(fitting)
    group = asked or min(BLOCKS)
    name, columns = next((name, tensor.columns) for name, tensor in linears.items() if tensor.columns % group)
    nearest = max((each for each in fitting if each < group), default=None)
    what = f"--group {asked}" if asked else f"--quant {NAME}"
    raise OptionError(
        f"{what}: tensor {name!r} has {columns:,} columns, no multiple of {group}",
        remedy=f"--group {nearest}" if nearest else f"--quant bf16: no group of {_choices(BLOCKS)} divides its rows",
    )


def _scales(others: Mapping[str, Tensor], architecture: Architecture, *, is_q4_0: bool) -> str:
    """The dtype of the source's other weights, so that they stay as they are; float16 is that of Q4_0's scales."""
    embedding = next(tensor for name, tensor in others.items() if name.endswith(_EMBEDDING))
    is_half = is_q4_0 or embedding.format is F16
    return "f16" if is_half and not architecture.overflows_float16 else "bf16"


def _choices(values: Collection[object]) -> str:
    return ", ".join(map(str, values))
