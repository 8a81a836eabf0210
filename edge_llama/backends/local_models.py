"""What models lie on this machine already, whoever put them there, and under which names; nothing is copied.

A store is a folder whose layout is known. Nothing but names, sizes and manifests is looked at here: what is in a file
is said by those that open it.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_llama.backends.base import Engine
from edge_llama.backends.registry import own_engines, registered, registrations
from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError
from edge_llama.files.artifact import BUILT_IN, MODEL_VARIABLE, existing
from edge_llama.files.checkpoint_folder import checkpoint_kind
from edge_llama.files.compiled import FOLDER as COMPILED
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.host.regular_files import content_of, text_of

FOLDERS_VARIABLE = "EDGE_LLAMA_MODELS"
_DEEPEST = 5
"""Folders below that of a store: publisher, model, and perhaps a format."""
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MOST_MANIFEST = 1 << 20
_PART = re.compile(r"-00001-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model, or a checkpoint to convert."""

    name: str
    """What every verb takes in place of the path."""
    path: Path
    """A file, or a folder of several that belong together."""
    store: str
    kind: Literal["model", "checkpoint"] = "model"
    problem: str = ""
    """Why it can't be opened."""


def found(model: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder that ``model`` means: what :func:`edge_llama.files.artifact.existing` takes, or a name here.

    ArtifactError if there is none, or it can't be opened.
    """
    try:
        return existing(model)
    except ArtifactError:
        given = model or os.environ.get(MODEL_VARIABLE)
        if given is None or (path := named(given)) is None:
            raise
        return path


def named(name: str | os.PathLike[str]) -> Path | None:
    """Where the model of this name lies; None if no store has one. ArtifactError for one that can't be opened."""
    if Path(name).is_absolute() or str(name)[:1] in (".", "~"):
        return None
    name = name if isinstance(name, str) else Path(name).as_posix()
    model = next((each for each in local_models() if each.name == name), None)
    if model and model.problem:
        raise ArtifactError(f"{name} ({model.store}): {model.problem}", remedy="see edge-llama models")
    return model.path if model else None


def local_models() -> list[LocalModel]:
    """What is found, store by store. A name that two have is made unlike by the second's store: ``NAME@ollama``."""
    models: list[LocalModel] = []
    paths: dict[str, Path] = {BUILT_IN: Path()}
    for store, find in STORES.items():
        for model in find(store):
            name, real = model.name, model.path.resolve()
            if paths.get(name) == real:
                continue
            name = name if name not in paths else f"{name}@{store}"
            paths[name] = real
            models.append(replace(model, name=name))
    return models


def meant(model: str | os.PathLike[str] | None = None) -> list[LocalModel]:
    """The model that :func:`found` finds, by its name; or all those in a folder of several, as stores name them.

    It raises what :func:`found` does. A folder without any is one model: who opens it says what is wrong with it.
    """
    path, given = found(model), os.fspath(model or os.environ.get(MODEL_VARIABLE) or BUILT_IN)
    if not Path(given).expanduser().exists():
        return [LocalModel(given, path, "given")]
    if not path.is_dir():
        return [LocalModel(_stem(path), path, "given")]
    whole = LocalModel(path.resolve().name, path, "given")
    inside = list(_below(path, "given"))
    if len(inside) == 1 and path in (inside[0].path, inside[0].path.parent):
        return [replace(inside[0], name=whole.name, path=path)]
    return inside or [whole]


# Stores, each by its own rules.


def _given(store: str) -> Iterator[LocalModel]:
    """The folders of ``$EDGE_LLAMA_MODELS``, separated as those of ``$PATH`` are."""
    for folder in filter(None, os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)):
        yield from _below(_home(folder), store)


def _hugging_face(store: str) -> Iterator[LocalModel]:
    """``models--OWNER--NAME/snapshots/REVISION``: of each repository what ``main`` is, else the newest that has one."""
    home = os.environ.get("HF_HOME") or _home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    for repository in _listed(_home(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")):
        if not repository.name.startswith("models--"):
            continue
        main = _first_line(repository / "refs" / "main")
        snapshots = sorted(_folders_in(repository / "snapshots"), key=_changed, reverse=True)
        for snapshot in sorted(snapshots, key=lambda each: each.name != main):
            if models := list(_below(snapshot, store, repository.name.removeprefix("models--").replace("--", "/"))):
                yield from models
                break


def _lm_studio(store: str) -> Iterator[LocalModel]:
    """``PUBLISHER/MODEL/FILE.gguf`` in the folder that its pointer names, or in its usual ones."""
    homes = [_home("~/.lmstudio"), _home("~/.cache/lm-studio")]
    if pointed := _first_line(_home("~/.lmstudio-home-pointer")):
        homes.insert(0, Path(pointed))
    for home in homes:
        yield from _below(home / "models", store)


def _llama_cpp(store: str) -> Iterator[LocalModel]:
    """What ``-hf`` and ``-mu`` of its programs keep: ``OWNER_NAME_FILE.gguf``. Later ones use Hugging Face's cache."""
    caches = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    cache = caches.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    yield from _below(_home(os.environ.get("LLAMA_CACHE") or _home(cache) / "llama.cpp"), store)


def _ollama(store: str) -> Iterator[LocalModel]:
    """Manifests ``HOST/NAMESPACE/MODEL/TAG``, whose layers are blobs named by their hash."""
    usual = ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    for place in [given] if (given := os.environ.get("OLLAMA_MODELS")) else usual:
        folder = _home(place)
        for root in (folder / "manifests-v2", folder / "manifests"):
            for manifest in sorted(_globbed(root, "*/*/*/*")):
                if manifest.is_file() and (model := _of_manifest(folder, manifest, root, store)):
                    yield model


STORES: dict[str, Callable[[str], Iterator[LocalModel]]] = {
    "folder": _given,
    "huggingface": _hugging_face,
    "lmstudio": _lm_studio,
    "llama.cpp": _llama_cpp,
    "ollama": _ollama,
}
"""Each by the word that tells two models of one name apart."""


def _below(root: Path, store: str, name: str = "", above: tuple[Path, ...] = ()) -> Iterator[LocalModel]:
    """The models in a folder and those below it, named by the way there, or beginning with ``name``.

    What can't be read is left out, what is not sound is told with its problem.
    """
    if (real := root.resolve()) in above or len(above) > _DEEPEST:
        return
    try:
        here = list(_models_in(root, store, name))
    except EdgeLlamaError as error:
        here = [LocalModel(name or root.name, root, store, problem=str(error))]
    except OSError:
        return
    yield from [replace(here[0], name=name)] if len(here) == 1 and name else here
    if (root / MANIFEST).is_file() or any(model.kind == "checkpoint" for model in here):
        return
    for folder in _folders_in(root):
        if not folder.name.startswith(".") and folder.name != COMPILED:  # the same models again
            yield from _below(folder, store, f"{name}/{folder.name}" if name else folder.name, (*above, real))


def _models_in(folder: Path, store: str, name: str) -> Iterator[LocalModel]:
    """What lies directly in a folder: it is one whole, or has files each of which is one."""
    if (folder / MANIFEST).is_file():
        yield LocalModel(name or folder.name, folder, store)
        return
    engines = list(_engines())
    texts = [file for engine in engines for file in engine.find(folder) if file.is_file()]
    beside = [file for engine in engines if engine.vision for file in engine.vision.find(folder)]
    if name and len(texts) == 1 and len(beside) == 1:
        yield LocalModel(name, folder, store)
        return
    for file in texts:
        stem = _stem(file)
        yield LocalModel(f"{name}/{stem}" if name else stem, file, store)
    if not texts and checkpoint_kind(folder) == "checkpoint" and any(weights_in(folder)):
        yield LocalModel(name or folder.name, folder, store, "checkpoint")


def _stem(file: Path) -> str:
    """A file's name without its suffix, and without its part's number."""
    return _PART.sub("", file.stem)


def _engines() -> Iterator[Engine[Any]]:
    """Those that can be loaded."""
    yield from own_engines()
    for entry in registrations():
        try:
            engine = registered(entry)
        except EngineError:
            continue
        yield engine


def weights_in(folder: Path) -> Iterator[Path]:
    """The files of a checkpoint that hold weights."""
    return (file for file in _listed(folder) if file.suffix in (".safetensors", ".pth") and file.is_file())


def _of_manifest(folder: Path, manifest: Path, root: Path, store: str) -> LocalModel | None:
    """None for what is no manifest of a model."""
    content = _json(manifest)
    for child in _objects(content, "manifests"):  # of several forms that in one file
        if child.get("format") == "gguf":
            content = child if child.get("layers") else _json(_blob(folder, child.get("digest")))
    layers = _objects(content, "layers")
    weights = [
        _blob(folder, layer.get("digest"))
        for layer in layers
        if layer.get("mediaType") == "application/vnd.ollama.image.model"
    ]
    name = _ollama_name(*manifest.relative_to(root).parts)
    if not weights:
        if any("tensor" in str(layer.get("mediaType")) for layer in layers):
            return LocalModel(name, manifest, store, problem="its tensors are in files of their own (MLX)")
        return None
    problem = "" if weights[0].is_file() else f"{weights[0].name} is missing: pull it again"
    return LocalModel(name, weights[0], store, problem=problem)


def _ollama_name(host: str, namespace: str, model: str, tag: str) -> str:
    """As ``ollama list`` shows it."""
    way = [] if host in ("registry.ollama.ai", "ollama.com") else [host]
    way += [] if not way and namespace == "library" else [namespace]
    return "/".join([*way, f"{model}:{tag}"])


def _blob(folder: Path, digest: object) -> Path:
    match = _DIGEST.fullmatch(str(digest).lower())
    return folder / "blobs" / (f"sha256-{match[1]}" if match else "nothing")


def _json(path: Path) -> dict[str, Any]:
    """What a manifest says; nothing if it can't be read or is none."""
    try:
        if path.stat().st_size > _MOST_MANIFEST:
            return {}
        content = json.loads(content_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _objects(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _first_line(path: Path) -> str:
    try:
        return text_of(path, "utf-8", "replace").strip()
    except OSError:
        return ""


def _home(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody's home is known: there is nothing there
        return Path(path)


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing in one that is not there or can't be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders_in(folder: Path) -> list[Path]:
    return [each for each in _listed(folder) if os.path.isdir(each)]  # noqa: PTH112 - Path's raises for what is locked


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _globbed(root: Path, pattern: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except OSError:
        return []
