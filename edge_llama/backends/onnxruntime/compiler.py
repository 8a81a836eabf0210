"""Graphs compiled by the engine of a device, and kept: ONNX Runtime calls that a context.

To open one takes a tenth of a second where the graph itself takes seconds, or on a phone minutes; and a desktop
compiles for a phone. It is done in a child process, since an engine's compiler may end the process that it runs in. How
what it makes lies beside its model: :mod:`edge_llama.files.compiled`.
"""

import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from edge_llama.backends import crash_probe
from edge_llama.backends.base import Placement, installed_version
from edge_llama.backends.device_names import KINDS, provider_options
from edge_llama.backends.onnxruntime.providers import OnnxDevice, resolve, runtime
from edge_llama.backends.onnxruntime.session import open_session
from edge_llama.backends.onnxruntime.snapdragon import chip
from edge_llama.backends.registry import engine_for
from edge_llama.backends.towers import read_bundle
from edge_llama.errors import (
    ArtifactError,
    EngineError,
    OptionError,
    OutputError,
    error_from_json,
    error_to_json,
)
from edge_llama.files import manifest
from edge_llama.files.artifact import Bundle, VisionArtifact
from edge_llama.files.compiled import NAME, SETTINGS, Compiled, folder_for, read_compiled
from edge_llama.files.identity import sha256_of
from edge_llama.files.onnx_graph_file import data_of
from edge_llama.files.onnx_static import StaticArtifact, is_static, read_static
from edge_llama.files.onnx_text import CONFIG, files_of, text_file
from edge_llama.host.atomic import PARTIAL, new_folder

FOR_NPUS = "convert the checkpoint with --to onnx --quant a16w8 (--vision-quant a16w8), and compile that folder"
_log = logging.getLogger(__name__)
_INTEGERS = "a16w8"
"""The format of vision towers that NPUs run."""
_QNN = "QNNExecutionProvider"
_GENAI: Mapping[str, tuple[str, Mapping[str, str]]] = {
    _QNN: ("QNN", {"backend_type": "htp"}),
    "OpenVINOExecutionProvider": ("OpenVINO", {}),
}
"""What onnxruntime-genai calls a provider, and what it must be told."""
_Group = Mapping[str, tuple[Path, ...]]
"""By the new file of each graph, its own files: graphs of one group have weights in common."""


@dataclass(frozen=True, slots=True)
class _Towers:
    """The towers of a model that are compiled."""

    bundle: Bundle
    text: StaticArtifact | None
    vision: VisionArtifact | None

    @property
    def sources(self) -> dict[str, str]:
        """What they are."""
        text = {"text": self.text.identity(), SETTINGS: settings_of(self.text)} if self.text else {}
        return text | ({"vision": self.vision.identity} if self.vision else {})

    @property
    def groups(self) -> list[_Group]:
        """Text first: of each part of its layers the graph of a prompt and that of a token."""
        pairs = zip(self.text.prompts, self.text.tokens, strict=True) if self.text else ()
        found: list[_Group] = [{_context(graph.path.name): graph.files for graph in pair} for pair in pairs]
        if self.vision:
            name = self.vision.path.relative_to(self.bundle.path).as_posix()
            found.append({_context(name): self.vision.files})
        return found


def compile_towers(
    bundle: Bundle,
    device: str,
    *,
    soc: str = "",
    options: Sequence[str] = (),
    shares: bool = False,
    is_forced: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, Compiled]:
    """Compile the towers for NPUs in ``bundle``, a folder, for ``device``; the new folder, and what is in it.

    ``soc`` names the chip of another machine; ``options`` are told to the provider; with ``shares`` a text tower's two
    graphs have their weights in one file. What is there and fits stays, unless ``is_forced``. ``on_progress`` is told
    the bytes of graphs and weights that are done, and how many there are.

    Raises ArtifactError where there is nothing to compile, OptionError for a device that does not compile or that
    leaves nodes to the CPU, EngineError if its engine fails, OutputError if nothing can be written.
    """
    there, towers = compiling(device), _towers(bundle)
    target = _target(soc, there, shares=shares)
    provider_options(options, there.name)
    record = would_be(there, towers.sources, soc=soc, options=options, shares=shares)
    output = folder_for(bundle.path, there.name, record.soc)
    placement = Placement(0, "as asked", there.name, provider_options=(*target, *options))
    try:
        with _alone(output):
            if is_forced or not _is_there(output, record):
                with new_folder(output) as folder:
                    _compile(towers.groups, placement, folder, shares=shares, on_progress=on_progress)
                    _write(towers, there, record, folder)
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written: {error.strerror or error}",
            remedy="make the model's folder writable, or copy the model to where there is room",
        ) from error
    return output, record


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Nobody else writes ``output`` meanwhile; what an earlier one left unfinished is removed."""
    output.parent.mkdir(exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        for left in output.parent.glob(f".{output.name}.*{PARTIAL}"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def settings_of(text: StaticArtifact) -> str:
    """A hash of what lies beside the graphs, but for the tokenizer, which the identity has."""
    graphs = {*text.files, text.tokenizer}
    return sha256(b"".join(file.read_bytes() for file in files_of(text.path) if file not in graphs)).hexdigest()


def compiles(device: str) -> bool:
    """Whether the provider of the device called so makes what can be kept."""
    kind = KINDS.get(device)
    return bool(kind and kind.onnx and kind.onnx.compiles)


def compiling(device: str) -> OnnxDevice:
    """A device that compiles, and whose package is installed. OptionError for another."""
    there = resolve(device)
    if not compiles(there.name):
        known = ", ".join(name for name in KINDS if compiles(name))
        raise OptionError(f"device {device}: nothing is compiled for it", remedy=f"known: {known}")
    return there


def package(device: OnnxDevice) -> str:
    """The distribution that compiles for ``device``, and its version."""
    return f"{device.onnx.package} {installed_version(device.onnx.package)}"


def would_be(
    device: OnnxDevice, sources: Mapping[str, str], *, soc: str = "", options: Sequence[str] = (), shares: bool = False
) -> Compiled:
    """What would be recorded of towers that were compiled now."""
    name, machine = (chip(soc).name, "") if soc else ("", platform.machine())
    return Compiled(device.name, package(device), machine, name, shares, tuple(options), dict(sources))


def _target(soc: str, device: OnnxDevice, *, shares: bool) -> tuple[str, ...]:
    """How the provider is told the chip. OptionError for a name that it does not know, and for what can't be opened."""
    if soc and device.onnx.provider != _QNN:
        raise OptionError(f"--soc {soc:.100}: only Qualcomm's chips have names", remedy="leave it out")
    if shares and not soc:
        raise OptionError(
            "--share: graphs with weights in common are for phones, since Qualcomm's emulator ends the process that "
            "opens them",
            remedy="name the phone's chip (--soc), or leave it out",
        )
    return tuple(f"{key}={value}" for key, value in chip(soc).options.items()) if soc else ()


def _towers(bundle: Bundle) -> _Towers:
    """Those for NPUs in ``bundle``. ArtifactError if there are none, or if it is no folder, or compiled itself."""
    if (bundle.path / NAME).exists():
        raise ArtifactError(f"{bundle.path}: was compiled", remedy="compile the model that it was compiled of")
    text = read_static(bundle.text) if bundle.text and _is_for_npus(bundle.text) else None
    vision = bundle.vision
    if vision and (vision.engine != "onnxruntime" or vision.format != _INTEGERS):
        if text:
            _log.warning("%s: is in %s, which is not for NPUs: it is not compiled", vision.path, vision.format)
        vision = None
    if text is None and vision is None:
        raise ArtifactError(f"{bundle.path}: holds no tower for NPUs", remedy=FOR_NPUS)
    return _Towers(bundle, text, vision)


def _is_for_npus(text: Path) -> bool:
    return text.suffix == ".onnx" and is_static(text)


def _context(name: str) -> str:
    """What a graph is called once it is compiled."""
    return f"{PurePosixPath(name).with_suffix('')}_ctx.onnx"


def _is_there(folder: Path, record: Compiled) -> bool:
    """Whether what lies in ``folder`` is just what would be written, and whole."""
    try:
        return read_compiled(folder) == record and bool(manifest.read_manifest(folder))
    except ArtifactError:
        return False


def _compile(
    groups: Sequence[_Group],
    placement: Placement,
    folder: Path,
    *,
    shares: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write the graphs of all groups into ``folder``, each in a child of its own, or one for those that share."""
    parts = groups if shares else [{name: files} for group in groups for name, files in group.items()]
    sizes = [sum(file.stat().st_size for files in part.values() for file in files) for part in parts]
    for number, part in enumerate(parts):
        if on_progress:
            on_progress(sum(sizes[:number]), sum(sizes))
        for name in part:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        graphs = [(str(files[0]), str(folder / name)) for name, files in part.items()]
        _in_a_child(graphs, placement)
    if on_progress:
        on_progress(sum(sizes), sum(sizes))


def _in_a_child(graphs: Sequence[tuple[str, str]], placement: Placement) -> None:
    """Have :func:`main` compile ``graphs``, for as long as it takes. Its errors; EngineError if the child dies."""
    about = f"{graphs[0][0]}: it can't be compiled for {placement.device}"
    if not crash_probe.has_children():
        raise EngineError(f"{about}: this program has no interpreter", remedy="compile by edge-llama's command line")
    try:
        outcome = crash_probe.run(__name__, json.dumps(graphs), json.dumps(placement.to_json()), seconds=None)
    except OSError as error:
        raise EngineError(f"{about}: no process can be started: {error}", remedy="close other programs") from error
    if outcome.said is None:
        is_killed = outcome.code == -9
        remedy = "it may want for memory: close other programs" if is_killed else "update the device's package"
        raise EngineError(f"{about}: the process that compiles it {outcome.how}", remedy=remedy)
    if "error" in outcome.said:
        raise error_from_json(outcome.said["error"])


def main(graphs: str, placement: str) -> None:
    """The child: compile each graph to its file, and tell of an error."""
    crash_probe.begin()
    said: dict[str, Any] = {}
    try:
        _compile_here(json.loads(graphs), Placement.from_json(json.loads(placement)))
    except Exception as error:  # the parent raises it
        said = {"error": error_to_json(error)}
    crash_probe.end(json.dumps(said))


def _compile_here(graphs: Sequence[tuple[str, str]], placement: Placement) -> None:
    alive = []  # those that share weights know of each other while they live
    for number, (source, target) in enumerate(graphs):
        options = runtime().SessionOptions()
        entries = {"ep.context_enable": "1", "ep.context_file_path": target, "ep.context_embed_mode": "0"}
        if len(graphs) > 1:
            entries["ep.share_ep_contexts"] = "1"
        if 0 < number == len(graphs) - 1:
            entries["ep.stop_share_ep_contexts"] = "1"
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        session, nodes = open_session(Path(source), Path(source), placement, options)
        if nodes and nodes.left:
            raise OptionError(
                f"{source}: {nodes.provider} does not run {len(nodes.left):,} of its nodes: {nodes.named}",
                remedy=FOR_NPUS,
            )
        if len(graphs) > 1:
            alive.append(session)
        if not Path(target).is_file():
            raise EngineError(f"{source}: {placement.device} wrote no context", remedy="update the device's package")


def _write(towers: _Towers, device: OnnxDevice, record: Compiled, folder: Path) -> None:
    """What a bundle needs besides the graphs: the model's other files, of which weights are linked where that goes."""
    weights = data_of((towers.text.inputs,)) if towers.text else ()
    for file in _kept(towers):
        target = folder / file.relative_to(towers.bundle.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            if file in weights:
                os.link(file.resolve(), target)
        if not target.exists():
            shutil.copyfile(file, target)
    if towers.text:
        (folder / CONFIG).write_bytes(_config(towers.text, device, record))
    (folder / NAME).write_bytes(record.encode())
    (folder / manifest.NAME).write_bytes(_manifest(towers, folder).encode())
    if towers.text:  # it is read once before it is there for others
        read_static(text_file(folder))
    read_bundle(folder)


def _kept(towers: _Towers) -> Iterator[Path]:
    """The model's files that go along: all but what was compiled, what is written anew, and a tower for others."""
    root, text, bundle = towers.bundle.path, towers.text, towers.bundle
    listed = [root / name for name in bundle.manifest.files] if bundle.manifest else []
    files = dict.fromkeys([*(files_of(text.path) if text else ()), *listed])
    left = {root / CONFIG, *(bundle.vision.files if bundle.vision else ())}
    if text:
        compiled = (*text.prompts, *text.tokens)
        left |= {*(graph.path for graph in compiled), *data_of(compiled)} - set(text.inputs.files)
    elif bundle.text:
        left |= set(engine_for(bundle.text).files(bundle.text))
    return (file for file in files if file not in left)


def _config(text: StaticArtifact, device: OnnxDevice, record: Compiled) -> bytes:
    """genai_config.json, whose stages are the compiled graphs, on the device."""
    content = json.loads(json.dumps(text.config.content))
    name, needed = _GENAI[device.onnx.provider]
    hardware = {"device_type": device.onnx.hardware} if device.onnx.hardware else {}
    (asked,) = provider_options(record.options, device.name)
    for entry in content["model"]["decoder"]["pipeline"]:
        for stage in entry.values():
            if stage["filename"] != text.inputs.path.name:
                stage["filename"] = _context(stage["filename"])
                options = stage.get("session_options")
                providers = [{name: {**needed, **hardware, **asked}}]
                stage["session_options"] = {
                    **(options if isinstance(options, dict) else {}),
                    "provider_options": providers,
                }
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _manifest(towers: _Towers, folder: Path) -> manifest.Manifest:
    """Of everything that lies in ``folder``."""
    text, vision, source = towers.text, towers.vision, towers.bundle.manifest
    names = [name for group in towers.groups for name in group]
    named = source.name if source else text.name if text else ""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    text_format = source.text.format if source and source.text else ""
    return manifest.Manifest(
        name=named,
        writer=f"edge-llama {version('edge-llama')}",
        files={
            file.relative_to(folder).as_posix(): manifest.StoredFile(file.stat().st_size, sha256_of(file))
            for file in files
        },
        text=manifest.Tower("onnxruntime", names[0], text_format) if text else None,
        vision=manifest.Tower("onnxruntime", names[-1], vision.format) if vision else None,
        images=vision.spec if vision else None,
        generation=source.generation if source else {},
    )
