"""With which settings an engine opens a model: given ones, else measured ones, else defaults that suit most CPUs.

Measured once for a model file, an engine's build and a processor, and remembered: so the same machine answers the same
tomorrow, for these settings change how numbers are rounded.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.files.identity import header_sha256
from edge_llama.host import devices, user_cache

_log = logging.getLogger(__name__)
_KIND = "engine-choices"
KV_FORMATS = ("f16", "f32", "q8_0")
"""Formats of the KV cache. q8_0 loses a little quality: it is taken only when asked for."""
_FASTER = 0.9  # what isn't faster by a tenth isn't worth leaving the default for
_READS_FASTER = 0.75  # of attention, which is a small part of reading a prompt


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is opened with. The defaults are the fastest for generation on the CPUs that were measured."""

    flash_attention: bool | None = False
    """None: the engine has no such choice."""
    kv_format: str = "f16"
    n_batch: int = 512
    """Tokens of a prompt that are computed together."""

    def __str__(self) -> str:
        flash = {True: "flash attention on, ", False: "flash attention off, ", None: ""}[self.flash_attention]
        return f"{flash}KV {self.kv_format}, batch {self.n_batch}"


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one layer's attention with one thread, at ``depth`` tokens: seconds per token."""

    setting: Setting
    depth: int
    read: float
    write: float

    def __str__(self) -> str:
        flash = "on" if self.setting.flash_attention else "off"
        name = f"{flash} {self.setting.kv_format} {self.setting.n_batch}"
        return f"{name} {self.write * 1e3:.2f} ms a token written, {self.read * 1e3:.3f} read"


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting and why; ``figures`` are what it was measured by, if it was."""

    setting: Setting
    reason: str
    figures: tuple[Figure, ...] = ()

    def __str__(self) -> str:
        figures = "; ".join(map(str, self.figures))
        measured = f"; one layer's attention at {self.figures[0].depth:,} tokens: {figures}" if figures else ""
        return f"{self.setting} ({self.reason}{measured})"


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
    if kv_format == "q8_0":
        if flash_attention is False:
            raise OptionError("a KV cache in q8_0 needs flash attention", remedy="turn it on (--flash-attn on)")
        flash_attention = True
    asked = {"flash_attention": flash_attention, "kv_format": kv_format, "n_batch": n_batch}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) == 3:
        return Choice(_with(Setting(), given), "as asked")
    if on_gpu:
        return Choice(_with(Setting(flash_attention=True), given), "the default on a GPU")
    figures = _figures(artifact) if tune and kv_format != "q8_0" else ()
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
        reads_faster = figure.read < _READS_FASTER * chosen.read and figure.write * _FASTER <= chosen.write
        if reads_faster or figure.write < _FASTER * chosen.write:
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
            return tuple(Figure(**{**figure, "setting": Setting(**figure["setting"])}) for figure in found["figures"])
        except (TypeError, KeyError):
            _log.debug("remembered figures have another form: measuring again")
    figures = tuple(tune.measure(artifact))
    user_cache.remember(_KIND, key, {"figures": [asdict(figure) for figure in figures]})
    return figures
