"""With which settings llama.cpp opens a model: given ones, else measured ones, else defaults that suit most CPUs.

Measured once for a model file, an engine's build and a processor, and remembered: so the same machine answers the same
tomorrow, for these settings change how numbers are rounded.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edge_llama.backends.base import Choice, Figure, Setting
from edge_llama.errors import OptionError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.files.identity import header_sha256
from edge_llama.host import devices, user_cache

_log = logging.getLogger(__name__)
_KIND = "engine-choices"
KV_FORMATS = ("f16", "f32", "q8_0", "q4_0")
"""Formats of the KV cache. Those in blocks lose quality (see docs/fidelity.md): they are taken only when asked for."""
_IN_BLOCKS = ("q8_0", "q4_0")
_FASTER = 0.9  # what isn't faster by a tenth isn't worth leaving the default for
_PREFILLS_FASTER = 0.75  # of attention, which is a small part of reading a prompt


def choose(
    artifact: GGUFArtifact,
    *,
    flash_attention: bool | None = None,
    kv_format: str | None = None,
    n_batch: int | None = None,
    on_gpu: bool = False,
    tune: bool = False,
) -> Choice:
    """The setting for this model. What is not None is taken as given; with ``tune`` the rest by measurement.

    Raises OptionError for values that are unknown or don't go together.
    """
    if kv_format is not None and kv_format not in KV_FORMATS:
        raise OptionError(f"kv_format is {kv_format!r}", remedy=f"known: {', '.join(KV_FORMATS)}")
    if kv_format in _IN_BLOCKS:
        if flash_attention is False:
            raise OptionError(f"a KV cache in {kv_format} needs flash attention", remedy="turn it on (--flash-attn on)")
        if artifact.shape.head_dim % FORMATS[kv_format].block_size:
            raise OptionError(
                f"a KV cache in {kv_format} has blocks of 32 values, {artifact.path} has heads of "
                f"{artifact.shape.head_dim}",
                remedy="take f16 (--kv f16)",
            )
        flash_attention = True
    asked = {"flash_attention": flash_attention, "kv_format": kv_format, "n_batch": n_batch}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) == 3:
        return Choice(_with(Setting(), given), "as asked")
    if on_gpu:
        return Choice(_with(Setting(flash_attention=True), given), "the default on a GPU")
    is_measured = (
        tune and kv_format not in _IN_BLOCKS and not artifact.is_encoder
    )  # what is measured is how fast it writes
    figures = _figures(artifact) if is_measured else ()
    candidates = [figure for figure in figures if _allows(figure.setting, given)]
    if not candidates:
        return Choice(_with(Setting(), given), "the default" if not given else "as asked, else the default")
    best = fastest(candidates)
    return Choice(_with(best, given), "measured" if not given else "as asked, else measured", figures)


def fastest(figures: Sequence[Figure]) -> Setting:
    """The first, unless another writes or, writing as fast, reads clearly faster. Writing is what people wait for."""
    first, *others = figures
    chosen = first
    for figure in others:
        prefills_faster = (
            figure.prefill < _PREFILLS_FASTER * chosen.prefill and figure.decode * _FASTER <= chosen.decode
        )
        if prefills_faster or figure.decode < _FASTER * chosen.decode:
            chosen = figure
    return chosen.setting


def _allows(setting: Setting, given: Mapping[str, Any]) -> bool:
    """Whether the setting keeps what was given; a batch can't be told from the figures of others."""
    return all(getattr(setting, name) == value for name, value in given.items() if name != "n_batch")


def _with(setting: Setting, given: Mapping[str, Any]) -> Setting:
    return Setting(**{**asdict(setting), **given})


def _figures(artifact: GGUFArtifact) -> tuple[Figure, ...]:
    from edge_llama.backends.llama_cpp import build_probe, tune  # noqa: PLC0415 - loads native code

    key = {"model": header_sha256(artifact.header), "build": build_probe.build(), "cpu": asdict(devices.cpu())}
    if found := user_cache.recall(_KIND, key):
        try:
            return tuple(_figure(remembered) for remembered in found["figures"])
        except (TypeError, KeyError):
            _log.debug("remembered figures have another form: measuring again")
    figures = tuple(tune.measure(artifact))
    user_cache.remember(_KIND, key, {"figures": [_remembered(figure) for figure in figures]})
    return figures


def _remembered(figure: Figure) -> dict[str, Any]:
    return {
        "setting": asdict(figure.setting),
        "depth": figure.depth,
        "read": figure.prefill,  # the names that this cache has had from the beginning
        "write": figure.decode,
    }


def _figure(remembered: Mapping[str, Any]) -> Figure:
    return Figure(Setting(**remembered["setting"]), remembered["depth"], remembered["read"], remembered["write"])
