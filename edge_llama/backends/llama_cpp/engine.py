"""llama.cpp as an engine: what is for it, and what is decided for its towers. Loads its package only to open one."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

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
from edge_llama.backends.device_trial import Speed, measured
from edge_llama.backends.estimates import Need, Pace
from edge_llama.backends.llama_cpp import build_probe, gpus, settings
from edge_llama.backends.llama_cpp.cpu_kernels import cpu_kernels
from edge_llama.backends.llama_cpp.need import need
from edge_llama.errors import EngineError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.gguf import gguf_files, is_gguf, is_named_gguf, read_header
from edge_llama.files.gguf_parts import LATER_PART, parts
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.files.mmproj import ARCHITECTURE as MMPROJ
from edge_llama.files.mmproj import read_mmproj
from edge_llama.files.shape import TextShape
from edge_llama.host import devices
from edge_llama.host.devices import Device
from edge_llama.prompts.tokenizer import Tokenizer

_RUNS = "GGUF files"


class LlamaCpp:
    """Keeps the Protocol :class:`edge_llama.backends.base.Engine`."""

    name = "llama.cpp"
    has_fixed_threads = False

    def __init__(self) -> None:
        self.vision = LlamaCppEncoders()

    def recognise(self, path: Path) -> bool:
        """By its suffix, or by the magic of GGUF."""
        return is_named_gguf(path.name) or is_gguf(path)

    def tower_kind(self, path: Path) -> TowerKind:
        """An mmproj says in its header that it is one."""
        return "vision" if read_header(path).architecture == MMPROJ else "text"

    def bundle(self, path: Path) -> Path | None:  # noqa: ARG002 - the Protocol's
        """A GGUF file stands alone."""
        return None

    def find(self, folder: Path) -> Iterable[Path]:
        """GGUF files, the first part of each, but for what is called mmproj."""
        return [file for file in _first_parts(folder) if not _is_mmproj(file)]

    def files(self, path: Path) -> Iterable[Path]:
        """All its parts."""
        return parts(path)

    def read(self, path: Path) -> GGUFArtifact:
        """The text tower at ``path``."""
        return read_gguf_text(path)

    def choose(self, artifact: GGUFArtifact, asked: AskedSetting, *, placement: Placement | None, tune: bool) -> Choice:
        """See :func:`edge_llama.backends.llama_cpp.settings.choose`."""
        return settings.choose(artifact, **asked, on_gpu=bool(placement and placement.gpu_layers), tune=tune)

    def place(self, artifact: GGUFArtifact, asked: AskedDevice, cache_bytes: int) -> Placement:
        """See :func:`edge_llama.backends.llama_cpp.gpus.place`."""
        if artifact.is_encoder and asked.name == "auto":  # it answers nothing whose speed could be compared
            asked.check_whole("an embedding model")
            return Placement(0, "the default of embedding models", is_strict=asked.is_strict)
        found = _available() if asked.name != "cpu" else []
        sizes = gpus.sizes_of(artifact, cache_bytes, asked.cpu_moe)
        is_tried = crash_probe.has_children() and not artifact.is_encoder
        return gpus.place(asked, found, sizes, partial(_measured, artifact, found, asked) if is_tried else None)

    def need(self, shape: TextShape, setting: Setting, cache: CacheSize, *, is_reserved: bool = False) -> Need:
        """See :func:`edge_llama.backends.llama_cpp.need.need`."""
        return need(shape, setting, cache, is_reserved=is_reserved)

    def pace(self, shape: TextShape, setting: Setting, threads: int) -> Pace | None:
        """See :func:`edge_llama.backends.llama_cpp.stand_in.pace`."""
        from edge_llama.backends.llama_cpp import stand_in  # noqa: PLC0415 - loads native code

        return stand_in.pace(shape, setting, threads)

    def open(
        self, artifact: GGUFArtifact, *, cache: CacheSize, setting: Setting, placement: Placement, threads: int
    ) -> TextTower:
        """Load the tower; a file that may end the process meets a child first."""
        from edge_llama.backends.llama_cpp import first_run  # noqa: PLC0415 - loads native code
        from edge_llama.backends.llama_cpp.text import LlamaCppTower  # noqa: PLC0415

        options = {
            "flash_attention": setting.flash_attention,
            "kv_format": setting.kv_format,
            "n_batch": setting.n_batch,
            "placement": placement.to_json(),
            **({"is_mapped": True} if setting.is_mapped else {}),
        }
        first_run.require(artifact, options)
        return LlamaCppTower(
            artifact,
            cache=cache,
            threads=threads,
            flash_attention=bool(setting.flash_attention),
            kv_format=setting.kv_format,
            n_batch=setting.n_batch,
            placement=placement,
            is_mapped=setting.is_mapped,
            embeds=partial(first_run.embeds, artifact, options),
        )

    def vocabulary(self, artifact: GGUFArtifact) -> Tokenizer:
        """llama.cpp's tokenizer, without the weights."""
        from edge_llama.backends.llama_cpp.vocabulary import open_vocabulary  # noqa: PLC0415 - for remote models

        return open_vocabulary(artifact)

    def state(self, *, again: bool) -> EngineState:
        """As a child process found it."""
        if build_probe.build() is None:
            return self._unusable(None, "not installed", "pip install llama-cpp-python")
        try:
            verdict = build_probe.verdict(again=again)
        except EngineError as error:
            return self._unusable(installed_version("llama-cpp-python"), error.message, error.remedy)
        found = build_probe.present(verdict)
        return EngineState(
            self.name,
            _RUNS,
            verdict.version,
            verdict.system_info,
            tuple(gpus.described(device, found) for device in found),
            str(cpu_kernels(verdict.system_info, devices.cpu().features)),
            verdict.checked,
            missing=gpus.missing(found),
        )

    def _unusable(self, installed: str | None, problem: str, remedy: str) -> EngineState:
        return EngineState(self.name, _RUNS, installed, problem=problem, remedy=remedy, missing=gpus.missing(()))


class LlamaCppEncoders:
    """Keeps the Protocol :class:`edge_llama.backends.base.VisionEngine`."""

    def find(self, folder: Path) -> Iterable[Path]:
        """What is called mmproj."""
        return [file for file in _first_parts(folder) if _is_mmproj(file)]

    def read(self, path: Path, bundled: Bundled | None = None) -> VisionArtifact:
        """The tower of an mmproj file."""
        return read_mmproj(path, bundled.spec if bundled else None, bundled.name if bundled else None)

    def place(self, artifact: VisionArtifact, asked: AskedDevice) -> Placement:
        """See :func:`edge_llama.backends.llama_cpp.gpus.place_whole`."""
        asked.check_whole("llama.cpp's encoder")
        found = _available() if asked.name not in ("auto", "cpu") else []
        return gpus.place_whole(asked, found, artifact.nbytes)

    def open(self, artifact: VisionArtifact, placement: Placement, *, threads: int) -> VisionTower:
        """Load the tower."""
        from edge_llama.backends.llama_cpp.vision import LlamaCppVision  # noqa: PLC0415 - loads native code

        return LlamaCppVision(artifact, threads=threads, placement=placement)


def _available() -> list[Device]:
    from edge_llama.backends.llama_cpp.text import available_devices  # noqa: PLC0415 - loads native code

    return available_devices()


def _measured(artifact: GGUFArtifact, found: Sequence[Device], asked: AskedDevice, placement: Placement) -> Speed | str:
    listed = [[device.name, device.description, device.total_bytes] for device in found]
    return measured(artifact, placement, {"build": build_probe.build(), "devices": listed}, asked)


def _first_parts(folder: Path) -> list[Path]:
    return [file for file in gguf_files(folder) if not LATER_PART.search(file.name)]


def _is_mmproj(file: Path) -> bool:
    return "mmproj" in file.name.lower()


ENGINE = LlamaCpp()
