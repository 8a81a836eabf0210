"""Will it fit, and how fast: asked from a program, of a file that the runtime opens or of shapes.

from edge_llama.fit import Asked, fit

print(fit("llama-3.2-1b-q4_k_m.gguf", asked=Asked(n_ctx=8192)).needed)
"""

import os
from dataclasses import replace

from edge_llama.backends.base import AskedSetting, Setting
from edge_llama.backends.registry import engine_named, engine_of, open_artifact
from edge_llama.backends.towers import locate
from edge_llama.errors import EngineError, OptionError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.shape import TextShape
from edge_llama.host import devices
from edge_llama.model import vision_of
from edge_llama.planning.fit import Asked, Fit, Speed, VisionShape, bound
from edge_llama.planning.fit import fit as fitted
from edge_llama.planning.machine import Machine, this

__all__ = ["Asked", "Fit", "Machine", "Speed", "VisionShape", "fit", "fit_shape", "need_of"]

_SCALE = 2
"""Patches in each direction that become one embedding: Llama 4's, which its file need not say."""


def fit(
    model: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
    asked: Asked | None = None,
    *,
    kv_format: str | None = None,
    flash_attention: bool | None = None,
) -> Fit:
    """The model on ``machine`` (None: this one), doing what is ``asked``. Only headers are read.

    ``kv_format`` and ``flash_attention`` are as in :func:`edge_llama.open`. Raises ArtifactError and OptionError as
    that does, but not for want of memory.

    Examples:
        >>> from edge_llama.fit import Asked, fit
        >>> fit("small.gguf", asked=Asked(n_ctx=256)).n_ctx
        256
    """
    artifact, vision = open_artifact(locate(model)), vision_of(model, {})
    machine, asked = machine or this(), asked or Asked()
    wanted = AskedSetting(flash_attention=flash_attention, kv_format=kv_format, n_batch=None)
    setting = engine_of(artifact).choose(artifact, wanted, placement=None, tune=False).setting
    if machine.device != "cpu" and artifact.engine == "llama.cpp" and flash_attention is None:
        setting = replace(setting, flash_attention=True)  # as it is opened there
    return fit_shape(artifact.shape, shape_of(vision) if vision else None, machine, replace(asked, setting=setting))


def fit_shape(shape: TextShape, vision: VisionShape | None, machine: Machine, asked: Asked) -> Fit:
    """A model of these shapes on ``machine``, and how fast. OptionError for a context that it can't have.

    Examples:
        >>> from edge_llama.convert import shapes
        >>> from edge_llama.fit import Asked, Machine, fit_shape
        >>> shape = shapes("tests/data/configs/llama-3.1-8b.json", ["q4_k_m"]).texts["q4_k_m"]
        >>> laptop = Machine("laptop", memory=12 * 10**9, total=16 * 10**9, bandwidth=89.6e9, flops=1.5e12)
        >>> fit_shape(shape, None, laptop, Asked(n_ctx=8192)).fits
        True
    """
    found = need_of(shape, vision, machine, asked)
    return replace(found, speed=_speed(shape, machine, asked.setting, found.n_ctx))


def need_of(shape: TextShape, vision: VisionShape | None, machine: Machine, asked: Asked) -> Fit:
    """The same without its speed, which may take seconds to measure.

    Examples:
        >>> from edge_llama.convert import shapes
        >>> from edge_llama.fit import Asked, Machine, need_of
        >>> shape = shapes("tests/data/configs/llama-3.3-70b.json", ["q4_k_m"]).texts["q4_k_m"]
        >>> need_of(shape, None, Machine("laptop", 12 * 10**9, 16 * 10**9), Asked()).fits
        False
    """
    if asked.n_ctx is not None and not 1 < asked.n_ctx <= shape.n_ctx_train:
        raise OptionError(
            f"n_ctx is {asked.n_ctx:,}, the model was trained for {shape.n_ctx_train:,}",
            remedy=f"give a whole number from 2 to {shape.n_ctx_train:,}",
        )
    engine = engine_named(shape.engine)
    assert engine is not None  # noqa: S101 - it read the model, or the converter writes for it
    return fitted(engine, shape, vision, machine, asked)


def _speed(shape: TextShape, machine: Machine, setting: Setting, n_ctx: int) -> Speed | None:
    """As measured where it is this machine's CPU, else what no machine of these sizes exceeds."""
    if not machine.is_here or machine.device != "cpu" or machine.bandwidth:
        return bound(shape, setting, machine, n_ctx)
    engine = engine_named(shape.engine)
    try:
        pace = engine.pace(shape, setting, devices.cpu_threads()) if engine else None
    except EngineError:  # it can be planned for where it does not work
        return None
    if pace is None:
        return None
    return Speed(1 / pace.prefill, 1 / pace.decode, 1 / pace.decoding(n_ctx), is_measured=True)


def shape_of(vision: VisionArtifact) -> VisionShape:
    """The shape of a vision tower that is there."""
    width = next((t.shape[-1] for t in vision.tensors if "class_emb" in t.name), vision.spec.n_embd)
    patches = vision.spec.tokens_per_tile * _SCALE**2 + 1
    return VisionShape(vision.nbytes, vision.spec, width, max(1, width // 88), 4 * width, patches)
