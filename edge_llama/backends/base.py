"""The seam between the runtime and its engines: an engine, its two kinds of towers, and what is decided for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.estimates import Need, Pace
from edge_llama.errors import EngineError, OptionError
from edge_llama.files.artifact import Artifact, VisionArtifact
from edge_llama.files.shape import TextShape
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.host.devices import Device
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow, Sampler


class AbortedError(Exception):
    """``decode`` was stopped by ``abort``; nothing was appended."""


@dataclass(slots=True, eq=False)
class Rows:
    """What one sequence appends in a decode: its next positions, of tokens or of embeddings."""

    sequence: int
    tokens: Sequence[int]
    """Token ids; for embeddings whatever stands for them, an entry for each row."""
    embeddings: NDArray[np.float32] | None = None
    """``(n, n_embd)`` in place of tokens."""
    needs_logits: bool = True
    """Whether the logits of the last row are wanted."""


class TextEmbedder(Protocol):
    """Texts in, hidden states out. What a text tower is asked for while it generates is not touched.

    Only the tower's thread may use it, and the tower's ``abort`` stops it.
    """

    @property
    def longest(self) -> int:
        """Tokens that a text may have."""

    @property
    def n_tokens(self) -> int:
        """Tokens that one :meth:`states` takes at most; where a text can't come in parts, ``longest`` or more."""

    @property
    def n_texts(self) -> int:
        """Texts that one :meth:`states` takes at most."""

    @property
    def n_embd(self) -> int:
        """Width of a hidden state."""

    def states(self, texts: Sequence[Sequence[int]], *, continues: bool = False) -> NDArray[np.float32]:
        """The last hidden states, after the last norm, of all tokens of all ``texts``: ``(n, n_embd)`` in their order.

        ``continues``: the one text goes on where the only text of the last call ended. Raises AbortedError, after
        which the same call may be made again, or EngineError.
        """


class TextTower(Protocol):
    """Tokens in, logits out, with a KV cache of several sequences. Only one thread may use it, ``abort`` excepted.

    Sequences are known by numbers below ``n_sequences``; all are empty at first. One that has the beginning of another
    shares its cells where the engine can.
    """

    @property
    def n_ctx(self) -> int:
        """Positions that a sequence may have."""

    @property
    def n_cells(self) -> int:
        """Positions that all sequences may have together; those that are shared count once."""

    @property
    def n_sequences(self) -> int:
        """How many sequences there may be. 1: the engine decodes one conversation after the other."""

    @property
    def n_batch(self) -> int:
        """Rows that one ``decode`` takes at most."""

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""

    @property
    def placed(self) -> str:
        """Which layers or nodes went to which device, as the engine says itself; "" where all is on the CPU."""

    def length(self, sequence: int) -> int:
        """Positions of a sequence."""

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        """Append to each sequence its rows, which are all tokens or all embeddings; logits for those that want them.

        These come in the order of ``batch``. Raises AbortedError, or EngineError; then nothing was appended, and a
        memory that can't be cut (see :meth:`cut`) is empty.
        """

    def cut(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` positions; none where the memory can't be cut there: recurrent states.

        :meth:`length` tells.
        """

    def share(self, source: int, target: int, length: int) -> None:
        """Have ``target`` begin with the first ``length`` positions of ``source``, in place of its own if it has any.

        Nothing is copied. Only where ``n_sequences`` is more than 1.
        """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the bytes of :meth:`save` depend on, besides the model: JSON values, ``engine`` names it."""

    def saved_bytes(self, sequence: int) -> int:
        """Bytes that :meth:`save` would give."""

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of a sequence's cache, in the engine's own format."""

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        """Have a sequence of ``length`` positions that :meth:`save` gave.

        EngineError if the engine refuses it: the sequence is then empty. The bytes are not checked: native code reads
        them as they are.
        """

    def embedder(self, longest: int) -> TextEmbedder:
        """What embeds texts of up to ``longest`` tokens, at most ``n_ctx``: made with the first call, anew for longer.

        EngineError if this tower gives no hidden states, OptionError if the memory does not suffice.
        """

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """A sampler that has already seen the tokens of ``history``."""

    def use_threads(self, count: int) -> None:
        """How many threads the next ``decode`` uses."""

    def abort(self) -> None:
        """Stop the ``decode`` that is running, and refuse others until ``resume``. Any thread may call it."""

    def resume(self) -> None:
        """Take work again after ``abort``."""

    def close(self) -> None:
        """Give back the engine's memory."""


def checked_embeddings(embeddings: NDArray[np.float32], tower: TextTower) -> NDArray[np.float32]:
    """Contiguous float32 ``(n, n_embd)``; EngineError for another shape, or for more than the tower takes at once."""
    values = np.ascontiguousarray(embeddings, np.float32)
    if values.ndim != 2 or values.shape[1] != tower.n_embd or not 0 < len(values) <= tower.n_batch:
        raise EngineError(f"embeddings have the shape {values.shape}, expected (n, {tower.n_embd:,})")
    return values


class OneSequence:
    """A tower used by hand for one sequence alone: where its speed is measured."""

    def __init__(self, tower: TextTower, sequence: int = 0) -> None:
        self.tower = tower
        self.sequence = sequence

    def decode(self, tokens: Sequence[int]) -> LogitsRow:
        """Append at most ``n_batch`` tokens; the logits of the last."""
        (row,) = self.tower.decode([Rows(self.sequence, tokens)])
        return row

    def cut(self, length: int) -> None:
        """Keep the first ``length`` positions."""
        self.tower.cut(self.sequence, length)


class VisionTower(Protocol):
    """Tiles in, embeddings out. Only one thread may use it, ``abort`` excepted."""

    def encode(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n_tiles, 3, side, side)`` normalised pixels to ``(n_tiles, tokens_per_tile, n_embd)`` embeddings.

        Raises AbortedError, or EngineError.
        """

    def use_threads(self, count: int) -> None:
        """How many threads the next ``encode`` uses, where the engine can be told."""

    def abort(self) -> None:
        """Stop the ``encode`` that is running, and refuse others until ``resume``. Any thread may call it."""

    def resume(self) -> None:
        """Take work again after ``abort``."""

    def close(self) -> None:
        """Give back the engine's memory. May be called twice."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is opened with. The defaults are the fastest for generation on the CPUs that were measured."""

    flash_attention: bool | None = False
    """None: the engine has no such choice."""
    kv_format: str = "f16"
    n_batch: int = 512
    """Tokens of a prompt that are computed together."""
    is_mapped: bool = False
    """Weights stay in their file, whose pages the system reads when they are needed and drops when memory is short."""

    def __str__(self) -> str:
        mapped = ", weights mapped" if self.is_mapped else ""
        flash = {True: "flash attention on, ", False: "flash attention off, ", None: ""}[self.flash_attention]
        return f"{flash}KV {self.kv_format}, batch {self.n_batch}{mapped}"


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a text tower's KV cache shall hold."""

    n_ctx: int
    """Positions of a sequence, at most."""
    n_cells: int
    """Positions of all sequences together."""
    n_sequences: int

    @classmethod
    def of_one(cls, n_ctx: int) -> "CacheSize":
        """That of one sequence."""
        return cls(n_ctx, n_ctx, 1)


class AskedSetting(TypedDict):
    """A :class:`Setting` as far as the caller gave it: None leaves a value open."""

    flash_attention: bool | None
    kv_format: str | None
    n_batch: int | None


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one layer's attention with one thread, at ``depth`` tokens: seconds per token."""

    setting: Setting
    depth: int
    prefill: float
    decode: float

    def __str__(self) -> str:
        flash = "on" if self.setting.flash_attention else "off"
        name = f"{flash} {self.setting.kv_format} {self.setting.n_batch}"
        return f"{name} {self.decode * 1e3:.2f} ms a token written, {self.prefill * 1e3:.3f} read"


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


@dataclass(frozen=True, slots=True)
class AskedDevice:
    """Where the caller wants a tower: a ``name`` (:mod:`edge_llama.backends.device_names`), and how several share it.

    What is not ``name`` and ``is_strict`` is for engines that put single layers somewhere.
    """

    name: str = "auto"
    is_strict: bool = False
    """What would be computed elsewhere than on that device is an error."""
    split_mode: str | None = None
    """How several devices share the tower: ``layer``, ``row`` or ``tensor``; None: by layers."""
    tensor_split: tuple[float, ...] = ()
    """What each device gets, as proportions; none: by the memory that is free there."""
    cpu_moe: int | bool = False
    """The experts of so many first layers stay on the CPU; True: of all."""
    provider_options: tuple[str, ...] = ()
    """What ONNX Runtime's execution provider is told besides, ``KEY=VALUE`` each."""

    def check_whole(self, engine: str) -> None:
        """OptionError if more was asked of ``engine``, which puts a whole tower on one device, than which."""
        for name, value in (
            ("split_mode", self.split_mode),
            ("tensor_split", self.tensor_split),
            ("cpu_moe", self.cpu_moe),
        ):
            if value:
                raise OptionError(
                    f"{name} is {value!r}, but {engine} runs a tower on one device",
                    remedy=f"leave it out (--{name.replace('_', '-')}): it is for GGUF models on GPUs",
                )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tower goes: ``gpu_layers`` of its layers to GPUs, or all of it to ``device``."""

    gpu_layers: int
    reason: str
    device: str = "cpu"
    """The device's name, with the numbers that were chosen: ``cuda:0``."""
    devices: tuple[str, ...] = ()
    """The engine's own names of the devices that it may use beside the CPU."""
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    cpu_moe: int = 0
    """The experts of so many first layers stay on the CPU."""
    is_for_prompts: bool = False
    """The devices only compute large batches; weights and KV cache stay on the CPU."""
    is_strict: bool = False
    provider_options: tuple[str, ...] = ()
    """What ONNX Runtime's execution provider is told besides, ``KEY=VALUE`` each."""
    found: str = ""
    """Where the engine says that it put layers or nodes; empty before it is opened, and where all is on the CPU."""

    def to_json(self) -> dict[str, Any]:
        """What an engine needs of it, without words: of two that are the same here one finding holds for both."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return plain | {"reason": "", "found": ""}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Placement":
        """What :meth:`to_json` or ``asdict`` gave, with lists in place of tuples."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**given)

    @property
    def where(self) -> str:
        """In words, without why."""
        if self.is_for_prompts:
            return f"CPU, prompts on {self.device}"
        if self.gpu_layers:
            return f"{self.gpu_layers:,} layers on {self.device}"
        return "CPU" if self.device == "cpu" else self.device

    def __str__(self) -> str:
        return f"{self.where} ({self.reason}{f'; {self.found}' if self.found else ''})"


ON_CPU = Placement(0, "the default")


def first_of(names: Sequence[str], count: int) -> str:
    """``names``, of more than ``count`` the first, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine on this machine. ``problem`` says why it can't be used, "" if it can; ``remedy`` what to do then."""

    name: str
    runs: str
    """Which files it is for."""
    version: str | None
    build: str = ""
    """What the engine says of its own build."""
    devices: tuple[Device, ...] = ()
    kernels: str = ""
    """Which of the processor's instruction sets the build uses."""
    checked: str = ""
    """When it decoded in a child process, ISO 8601."""
    problem: str = ""
    remedy: str = ""
    missing: tuple[str, ...] = ()
    """How to get an engine for GPUs that this build can't use, a line each; those whose driver is here first."""


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, for an :class:`EngineState`; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


TowerKind = Literal["text", "vision"]
A = TypeVar("A", bound=Artifact)


class Engine(Protocol[A]):
    """An engine that runs text towers, whose artifacts are of the type ``A``. Which one is meant: ``registry.py``.

    Everything but ``open`` works without the engine's own package, if only to say what is missing.
    """

    @property
    def name(self) -> str:
        """As manifests name it: ``llama.cpp``."""

    @property
    def has_fixed_threads(self) -> bool:
        """Whether a tower keeps the number of threads that it was opened with."""

    @property
    def vision(self) -> "VisionEngine | None":
        """The same engine for vision towers, if it runs such."""

    def recognise(self, path: Path) -> bool:
        """Whether the file at ``path`` is for this engine, by its name or its first bytes: it may be damaged yet."""

    def tower_kind(self, path: Path) -> TowerKind:
        """Which tower the file at ``path`` holds. ArtifactError if it is damaged."""

    def bundle(self, path: Path) -> Path | None:
        """The folder of the bundle without whose manifest the file at ``path`` can't be read or verified, if any."""

    def find(self, folder: Path) -> Iterable[Path]:
        """Files in a folder without a manifest that are text towers for this engine, by their names."""

    def files(self, path: Path) -> Iterable[Path]:
        """Everything that is read of the text tower at ``path``: what a manifest must list."""

    def read(self, path: Path) -> A:
        """The text tower at ``path``. ArtifactError names what is wrong."""

    def choose(self, artifact: A, asked: AskedSetting, *, placement: Placement | None, tune: bool) -> Choice:
        """The setting for this tower, where it goes to ``placement`` if that is known; with ``tune`` by measurement.

        OptionError for what is unknown, does not go together, or is not this engine's to choose.
        """

    def place(self, artifact: A, asked: AskedDevice, cache_bytes: int) -> Placement:
        """Where the tower and ``cache_bytes`` of KV cache go, by what was ``asked``.

        OptionError for a device that this engine does not know or that can't hold it, EngineError for one that fails.
        """

    def need(self, shape: TextShape, setting: Setting, cache: CacheSize, *, is_reserved: bool = False) -> Need:
        """What a text tower of this shape takes when its cache is full. Loads nothing.

        ``is_reserved``: on a device, which gives at once all that may ever be needed; the CPU's memory is taken as it
        is written.
        """

    def pace(self, shape: TextShape, setting: Setting, threads: int) -> Pace | None:
        """How fast a text tower of this shape is on the CPU of this machine; None if that can't be told beforehand.

        It is measured once in a few seconds, and remembered. EngineError if the engine does not work here.
        """

    def open(self, artifact: A, *, cache: CacheSize, setting: Setting, placement: Placement, threads: int) -> TextTower:
        """Load the tower. ArtifactError if the engine refuses it, EngineError if it does not work here.

        One that decodes a single conversation at a time takes ``n_ctx`` of ``cache`` alone, and says so by
        ``n_sequences``.
        """

    def vocabulary(self, artifact: A) -> Tokenizer:
        """The tower's vocabulary at work, without its weights: for a model that runs elsewhere.

        ArtifactError if the engine refuses it, EngineError if it does not work here.
        """

    def state(self, *, again: bool) -> EngineState:
        """Whether it works on this machine; what is remembered of that is found out ``again``."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """What a bundle's manifest says of its vision tower."""

    spec: VisionSpec
    name: str
    format: str


class VisionEngine(Protocol):
    """An engine that runs vision towers."""

    def find(self, folder: Path) -> Iterable[Path]:
        """Files in a folder without a manifest that are vision towers for this engine, by their names."""

    def read(self, path: Path, bundled: Bundled | None = None) -> VisionArtifact:
        """The vision tower at ``path``. ArtifactError names what is wrong."""

    def place(self, artifact: VisionArtifact, asked: AskedDevice) -> Placement:
        """Where the tower goes, by what was ``asked``. OptionError for a device that is not known."""

    def open(self, artifact: VisionArtifact, placement: Placement, *, threads: int) -> VisionTower:
        """Load the tower. ArtifactError if the engine refuses it, EngineError if it does not work here."""
