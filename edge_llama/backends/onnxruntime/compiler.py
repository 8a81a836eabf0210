"""Graphs compiled by the engine of a device, and kept: ONNX Runtime calls that a context.

To open one takes a tenth of a second where the graph itself takes seconds, or on a phone minutes; and a desktop
compiles for a phone. It is done in a child process, since an engine's compiler may end the process that it runs in. How
what it makes lies beside its model: :mod:`edge_llama.files.compiled`.
"""

import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from edge_llama.backends import crash_probe
from edge_llama.backends.base import Placement, installed_version
from edge_llama.backends.device_names import KINDS, check_provider_options
from edge_llama.backends.onnxruntime.compiled_bundle import Group, Towers, write
from edge_llama.backends.onnxruntime.providers import OnnxDevice, resolve, runtime
from edge_llama.backends.onnxruntime.session import open_session
from edge_llama.backends.onnxruntime.snapdragon import chip
from edge_llama.errors import (
    ArtifactError,
    EngineError,
    OptionError,
    OutputError,
    error_from_json,
    error_to_json,
)
from edge_llama.files import manifest
from edge_llama.files.artifact import Bundle
from edge_llama.files.compiled import NAME, Compiled, folder_for, read_compiled
from edge_llama.files.onnx_static import is_static, read_static
from edge_llama.host.atomic import PARTIAL, new_folder

FOR_NPUS = "convert the checkpoint with --to onnx --quant a16w8 (--vision-quant a16w8), and compile that folder"
_log = logging.getLogger(__name__)
_INTEGERS = "a16w8"
"""The format of vision towers that NPUs run."""
_QNN = "QNNExecutionProvider"


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
    check_provider_options(options, there.name)
    record = would_be(there, towers.sources, soc=soc, options=options, shares=shares)
    output = folder_for(bundle.path, there.name, record.soc)
    placement = Placement(0, "as asked", there.name, provider_options=(*target, *options))
    try:
        with _alone(output):
            if is_forced or not _is_there(output, record):
                with new_folder(output) as folder:
                    _compile(towers.groups, placement, folder, shares=shares, on_progress=on_progress)
                    write(towers, there, record, folder)
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


def _towers(bundle: Bundle) -> Towers:
    """Those for NPUs in ``bundle``. ArtifactError if there are none, or if it was compiled itself."""
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
    return Towers(bundle, text, vision)


def _is_for_npus(text: Path) -> bool:
    return text.suffix == ".onnx" and is_static(text)


def _is_there(folder: Path, record: Compiled) -> bool:
    """Whether what lies in ``folder`` is just what would be written, and whole."""
    try:
        return read_compiled(folder) == record and bool(manifest.read_manifest(folder))
    except ArtifactError:
        return False


def _compile(
    groups: Sequence[Group],
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
        raise EngineError(
            f"{about}: this program can start no child process", remedy="compile by edge-llama's command line"
        )
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
