"""ONNX Runtime as an engine: what is for it, and what is decided for its towers. Loads its package only to open one."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.base import (
    AskedDevice,
    AskedSetting,
    Bundled,
    CacheSize,
    Choice,
    EngineState,
    Placement,
    Setting,
    TextTower,
    TowerKind,
    VisionTower,
    installed_version,
)
from edge_llama.backends.device_names import GROUPS, KINDS, DeviceName, Onnx, provider_keys
from edge_llama.backends.device_trial import Speed, faster, measured
from edge_llama.backends.estimates import Need, Pace
from edge_llama.backends.onnxruntime import contexts
from edge_llama.backends.onnxruntime.need import need
from edge_llama.backends.onnxruntime.providers import is_installed, resolve, runtime
from edge_llama.errors import EngineError, OptionError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.manifest import bundle_of
from edge_llama.files.onnx_static import StaticArtifact, is_static, read_static
from edge_llama.files.onnx_text import CONFIG, OnnxArtifact, files_of, is_text_file, read_onnx_text, text_file
from edge_llama.files.onnx_vision import read_from_bundle, read_onnx_vision
from edge_llama.files.shape import TextShape
from edge_llama.host.devices import Device
from edge_llama.prompts.tokenizer import Tokenizer


class OnnxRuntime:
    """Keeps the Protocol :class:`edge_llama.backends.base.Engine`."""

    name = "onnxruntime"
    has_fixed_threads = True

    def __init__(self) -> None:
        self.vision = OnnxEncoders()

    def recognise(self, path: Path) -> bool:
        """By its suffix: ONNX has no magic."""
        return path.suffix.lower() == ".onnx"

    def tower_kind(self, path: Path) -> TowerKind:
        """What a folder's genai_config.json names is its text tower."""
        return "text" if is_text_file(path) else "vision"

    def bundle(self, path: Path) -> Path | None:
        """A vision tower is nothing without its bundle; a text tower may be in one, which then has the hashes."""
        if not is_text_file(path):
            return bundle_of(path)
        return path.parent if (path.parent / MANIFEST).exists() else None

    def find(self, folder: Path) -> Iterable[Path]:
        """The file that genai_config.json names."""
        return [text_file(folder)] if (folder / CONFIG).is_file() else []

    def files(self, path: Path) -> Iterable[Path]:
        """The graphs, their weights, and what lies beside them."""
        return files_of(path)

    def read(self, path: Path) -> OnnxArtifact:
        """The text tower at ``path``."""
        return read_static(path) if is_static(path) else read_onnx_text(path)

    def choose(
        self,
        artifact: OnnxArtifact,
        asked: AskedSetting,
        *,
        placement: Placement | None,  # noqa: ARG002 - the Protocol's
        tune: bool,  # noqa: ARG002
    ) -> Choice:
        """The graph itself says how attention is computed and how the cache is stored: that can't be asked for."""
        for name, value, flag in (
            ("flash_attention", asked["flash_attention"], "--flash-attn"),
            ("kv_format", asked["kv_format"], "--kv"),
        ):
            if value is not None:
                raise OptionError(
                    f"{name} is {value!r}, but ONNX Runtime runs {artifact.path}: its graph decides that",
                    remedy=f"leave it out ({flag})",
                )
        n_batch = asked["n_batch"]
        setting = Setting(flash_attention=None, kv_format=artifact.kv_format.name, n_batch=n_batch or Setting().n_batch)
        return Choice(setting, "as asked" if n_batch else "the default")

    def place(self, artifact: OnnxArtifact, asked: AskedDevice, cache_bytes: int) -> Placement:  # noqa: ARG002 - the Protocol's
        """The whole tower on one execution provider; what that takes is seen when the tower is opened.

        ``auto`` is the CPU, unless a GPU's provider is installed, its driver here, and the model measured faster there:
        a tower for NPUs is none for GPUs.
        """
        placement = _placement(asked, artifact.path.parent)
        is_tried = asked.name == "auto" and not isinstance(artifact, StaticArtifact) and crash_probe.has_children()
        kinds = DeviceName("gpu").kinds if is_tried else ()
        likely = (kind for kind in kinds if kind.onnx and kind.onnx.is_tried and kind.is_likely)
        gpu = next((kind.name for kind in likely if is_installed(kind)), None)
        if gpu is None:
            return placement
        there = replace(placement, device=gpu, reason="its provider is installed")
        return faster(there, partial(_measured, artifact, asked))

    def need(
        self,
        shape: TextShape,
        setting: Setting,
        cache: CacheSize,
        *,
        is_reserved: bool = False,  # noqa: ARG002 - the Protocol's
    ) -> Need:
        """See :func:`edge_llama.backends.onnxruntime.need.need`."""
        return need(shape, setting, cache)

    def pace(self, shape: TextShape, setting: Setting, threads: int) -> Pace | None:  # noqa: ARG002
        """None: a graph is its own, and no other stands for it."""
        return None

    def open(
        self, artifact: OnnxArtifact, *, cache: CacheSize, setting: Setting, placement: Placement, threads: int
    ) -> TextTower:
        """Load the tower; graphs that may end the process meet a child first."""
        options: Any = {"n_ctx": cache.n_ctx, "threads": threads, "n_batch": setting.n_batch, "placement": placement}
        if not isinstance(artifact, StaticArtifact):
            from edge_llama.backends.onnxruntime import text  # noqa: PLC0415 - loads native code

            text.require(artifact, placement)
            return text.OnnxTower(artifact, **options)
        from edge_llama.backends.onnxruntime import static  # noqa: PLC0415 - loads native code

        def opened(found: StaticArtifact) -> TextTower:
            static.require(found, placement)
            return static.StaticTower(found, **options)

        return contexts.open_text(artifact, placement, opened)

    def vocabulary(self, artifact: OnnxArtifact) -> Tokenizer:
        """That of the folder's files."""
        from edge_llama.prompts.hf_tokenizer import HFTokenizer  # noqa: PLC0415 - for remote models

        return HFTokenizer(artifact)

    def state(self, *, again: bool) -> EngineState:  # noqa: ARG002 - nothing is remembered
        """Its version and providers."""
        name, runs = "ONNX Runtime", "ONNX models and vision towers"
        if find_spec("onnxruntime") is None:
            return EngineState(name, runs, None, problem="not installed", remedy="pip install onnxruntime")
        try:
            library = runtime()
        except EngineError as error:
            return EngineState(name, runs, installed_version("onnxruntime"), problem=error.message, remedy=error.remedy)
        plugins = {kind.onnx.package: kind.onnx for kind in KINDS.values() if kind.onnx and kind.onnx.package}
        there = [*library.get_available_providers(), *map(_described, plugins.values())]
        about = f"providers: {', '.join(there)}"
        return EngineState(name, runs, library.__version__, about, devices=_offered(), missing=_missing())


class OnnxEncoders:
    """Keeps the Protocol :class:`edge_llama.backends.base.VisionEngine`."""

    def find(self, folder: Path) -> Iterable[Path]:  # noqa: ARG002 - the Protocol's
        """None: without a manifest nothing says how pixels are prepared for a graph."""
        return []

    def read(self, path: Path, bundled: Bundled | None = None) -> VisionArtifact:
        """The tower of an ONNX file; the bundle that it lies in says the rest. ArtifactError if it lies in none."""
        if bundled is None:
            return read_from_bundle(path)
        return read_onnx_vision(path, bundled.spec, bundled.name, bundled.format)

    def place(self, artifact: VisionArtifact, asked: AskedDevice) -> Placement:
        """The whole tower on one execution provider; what that takes is seen when the tower is opened."""
        return _placement(asked, bundle_of(artifact.path))

    def open(self, artifact: VisionArtifact, placement: Placement, *, threads: int) -> VisionTower:
        """Load the tower; a graph that may end the process meets a child first."""
        from edge_llama.backends.onnxruntime.vision import OnnxVision, require  # noqa: PLC0415 - loads native code

        def opened(found: VisionArtifact) -> VisionTower:
            require(found, placement)
            return OnnxVision(found, threads=threads, placement=placement)

        return contexts.open_vision(artifact, placement, opened)


def _placement(asked: AskedDevice, folder: Path) -> Placement:
    """Where a tower in ``folder`` goes; what was compiled has one device.

    OptionError for a device that ONNX Runtime does not know, that is not installed, or for which it was not compiled.
    """
    asked.check_whole("ONNX Runtime")
    name, reason = asked.name, "as asked"
    if (device := contexts.compiled_for(folder)) and name == "auto":
        name, reason = device, "it was compiled for that"
    elif name == "auto":
        reason = "the default"
    elif name in GROUPS:
        reason = f"the first {name} that is installed"
    found = resolve(name).name
    if device not in (None, found):
        raise OptionError(
            f"{folder}: was compiled for {device}, and {found} can't run it",
            remedy="leave --device out, or open the model that it was compiled of",
        )
    keys = provider_keys(found)
    told = tuple(text for text in asked.provider_options if text.partition("=")[0] in keys)
    return Placement(0, reason, found, is_strict=asked.is_strict, provider_options=told)


def _measured(artifact: OnnxArtifact, asked: AskedDevice, placement: Placement) -> Speed | str:
    packages = {kind.onnx.package for kind in KINDS.values() if kind.onnx} - {""}
    plugins, library = {name: installed_version(name) for name in sorted(packages)}, runtime()
    engine = {"version": library.__version__, "providers": library.get_available_providers(), "plugins": plugins}
    return measured(artifact, placement, engine, asked)


def _offered() -> tuple[Device, ...]:
    """A device for each kind whose provider is installed: how many there are, and their memory, providers don't say."""
    return tuple(
        Device(
            kind.onnx.provider,
            "cpu" if kind.name == "cpu" else "accelerator",
            kind.label if kind.is_here() else f"{kind.label}, of which no driver was found here",
            *(0, 0),
            option=kind.name,
            runs=kind.onnx.runs,
        )
        for kind in KINDS.values()
        if kind.onnx and kind.is_possible and is_installed(kind)
    )


def _missing() -> tuple[str, ...]:
    """How to get providers whose driver is here, a line each."""
    wanted = [kind for kind in KINDS.values() if kind.onnx and kind.is_likely and not is_installed(kind)]
    lines = {kind.onnx.install: f"for ONNX models on {kind.label}: {kind.onnx.install}" for kind in wanted if kind.onnx}
    return tuple(lines.values())


def _described(plugin: Onnx) -> str:
    """A provider in a package of its own: the version, or how to get it."""
    return f"{plugin.provider} ({installed_version(plugin.package) or f'not here: {plugin.install}'})"


ENGINE = OnnxRuntime()
