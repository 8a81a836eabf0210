"""What a conversion may be asked for, beyond its source and its output."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FLAGS = {"tensor_types": "--tensor-type", "max_shard_bytes": "--max-shard-size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keyword arguments of :func:`converters.plan` and :func:`converters.convert`.

    An application finds the same in :class:`edge_llama.convert.ConvertOptions`; a test compares the two.

    ``quant`` names a recipe (None: ``q4_k_m``, or ``bf16`` for safetensors), ``to`` a target (None: by the output's
    name). Of a checkpoint with two towers ``tower`` says which are written: ``text`` or ``vision``, to a ``.gguf`` file
    or a bundle, or ``all`` (None), to a bundle. The vision tower is written for ``vision_to``, ``onnx`` (None) or
    ``gguf``, with weights in ``vision_quant``, ``f16`` (None), ``f32``, for ``gguf`` ``bf16`` or ``q8_0``, for ONNX
    ``int8``, ``int4`` or, for NPUs, ``a16w8``. What is made by ranges of values takes them from the file or files
    of ``calibration``, which tell by themselves of which tower they are; a GGUF file's text tower is quantized by an
    importance matrix there, which recipes below three bits need.
    ``tensor_types`` gives all tensors of a role another format than the recipe's: ``{"attn_v": "q8_0"}``; roles:
    ``quant.recipe.ROLES``. ``tensor_type_file`` is a file that llama-quantize takes by this name too: each tensor gets
    the format of the first line whose pattern is in its name; ``tensor_types`` have the last word.
    A GGUF file with more than ``max_shard_bytes`` of data becomes several, named as llama.cpp
    names them. ``chat_template`` is a family (``llama3.1``), a Jinja file or ``none``; None: the source's own stays, or
    what its name suggests. ``lora`` is the folder of an adapter that peft saved, to merge on the way; ``base`` is for a
    source that is such a folder itself: the model that it was trained beside, or its config.json alone.
    For ONNX ``quant`` is ``int4`` (None), ``int8``, ``f16`` or ``f32``, where ``block`` weights (32, 64 or 128) share a
    scale, and with ``zero_points`` a zero point too; ``portable`` graphs have standard operators alone,
    and with ``embeddings`` the text tower's gives hidden states, too. For NPUs it is ``a16w8`` or ``a16w4``, made by
    ranges too: two graphs of fixed shapes, which read ``window`` tokens (64) or one, and see ``n_ctx`` (2,048).
    Keys and values have ``kv_bits``, 8 (None) or 16; graphs with more than ``max_shard_bytes`` of weights (1.9 GB) are
    several.
    For safetensors it is ``bf16`` (None), ``f16``, ``f32`` or ``w4a16``: linear layers in 4 bits, of which ``group``
    weights (32, 64 or 128; None: the largest that divides all rows) share a scale in ``scale_dtype``, ``bf16`` or
    ``f16`` (None: by the source), which all else is stored in. A folder with more than ``max_shard_bytes`` of tensors
    has several files of them, and an index.
    ``allow_nonfinite`` goes on where weights are NaN or infinite, or too large for their format.
    """

    quant: str | None = None
    to: str | None = None
    tower: str | None = None
    vision_to: str | None = None
    vision_quant: str | None = None
    calibration: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ()
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    tensor_type_file: str | os.PathLike[str] | None = None
    block: int | None = None
    group: int | None = None
    scale_dtype: str | None = None
    zero_points: bool = False
    portable: bool = False
    embeddings: bool = False
    n_ctx: int | None = None
    window: int | None = None
    kv_bits: int | None = None
    max_shard_bytes: int | None = None
    chat_template: str | os.PathLike[str] | None = None
    lora: str | os.PathLike[str] | None = None
    base: str | os.PathLike[str] | None = None
    allow_nonfinite: bool = False

    @property
    def evidence(self) -> tuple[Path, ...]:
        """The files of ``calibration``."""
        if isinstance(self.calibration, str | os.PathLike):
            return (Path(self.calibration),)
        return tuple(map(Path, self.calibration))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide how weights are quantized: ``evidence``, and what ``tensor_type_file`` is."""
        return (*self.evidence, *([] if self.tensor_type_file is None else [Path(self.tensor_type_file)]))


def flag(name: str) -> str:
    """How the command line calls a field of :class:`Options`."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
