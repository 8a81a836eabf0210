"""Sessions of ONNX Runtime: a graph on a device, and which of its nodes the device took."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.base import Placement, first_of, installed_version
from edge_llama.backends.crash_probe import CrashProbe
from edge_llama.backends.device_names import environment
from edge_llama.backends.onnxruntime.providers import CPU, OnnxDevice, add, resolve, runtime, why
from edge_llama.errors import ArtifactError, EngineError, NotVerifiableError, OptionError
from edge_llama.files import manifest
from edge_llama.files.identity import file_state
from edge_llama.host import user_cache

_PROBE = CrashProbe("ONNX Runtime", "onnxruntime")
_REFUSED = "the file is damaged, or newer than this onnxruntime: convert it again, or update onnxruntime"
_ELSEWHERE = "take another device (--device cpu), or convert it for this one"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Nodes:
    """How a session's nodes are shared: ``taken`` by its provider, ``left`` to the CPU (name and operator of each)."""

    provider: str
    taken: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        if not self.left:
            return f"all {self.taken:,} nodes on {self.provider}"
        return f"{self.taken:,} nodes on {self.provider}, {len(self.left):,} on the CPU: {self.named}"

    @property
    def named(self) -> str:
        """The first that are left to the CPU, and how many more."""
        return first_of(self.left, _NAMED)


def open_session(file: Path, model: Path, placement: Placement, options: Any) -> tuple[Any, Nodes | None]:
    """A session of ``file`` where ``placement`` says, and how its nodes are shared; errors are about ``model``.

    What the device does not take runs on the CPU, if it is not most of it; placed strictly it takes all. For the CPU
    there are no :class:`Nodes`.

    Raises ArtifactError if ONNX Runtime refuses the file, OptionError if there is no such device, or nodes are not
    taken: it names them; EngineError if the device fails.
    """
    options.log_severity_level = 4  # what is wrong is raised; the rest would go to the host's stderr
    found = resolve(placement.device)
    if found.is_cpu:
        try:
            return runtime().InferenceSession(str(file), options, providers=[CPU], enable_fallback=0), None
        except Exception as error:  # its errors share no class but this
            raise ArtifactError(f"{model}: ONNX Runtime refuses it: {why(error)}", remedy=_REFUSED) from error
    return _on_device(file, model, found, options, placement)


def _on_device(file: Path, model: Path, device: OnnxDevice, options: Any, placement: Placement) -> tuple[Any, Nodes]:
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider, providers = device.onnx.provider, add(device, options, placement.provider_options)
    try:
        # Python's session would else print, and begin anew on the CPU, when a provider fails: also later.
        session = runtime().InferenceSession(str(file), options, providers=providers, enable_fallback=0)
        nodes = _shared_out(session, provider)
    except Exception as error:  # its errors share no class but this
        raise EngineError(f"{model}: {provider} does not run it: {why(error)}", remedy=_ELSEWHERE) from error
    if provider not in session.get_providers():  # ONNX Runtime goes on without, as if nothing were
        raise EngineError(
            f"device {device.name}: {provider} can't be started: its driver or libraries are missing or too old",
            remedy=f"install them, and this anew: {device.onnx.install}",
        )
    _check_taken(nodes, model, is_strict=placement.is_strict)
    return session, nodes


def _check_taken(nodes: Nodes, model: Path, *, is_strict: bool) -> None:
    """OptionError for nodes that are left to the CPU: most of them, or with ``is_strict`` any."""
    taken, left = nodes.taken, len(nodes.left)
    if not taken or taken < left:
        raise OptionError(
            f"{model}: {nodes.provider} takes {taken:,} of its {taken + left:,} nodes, the CPU would run {nodes.named}",
            remedy=_ELSEWHERE,
        )
    if is_strict and left:
        raise OptionError(
            f"{model}: {nodes.provider} does not run {left:,} of its nodes, the CPU would: {nodes.named}",
            remedy=f"leave --strict-device out, {_ELSEWHERE}",
        )


def _shared_out(session: Any, provider: str) -> Nodes:
    """As ONNX Runtime recorded it when it gave the graph's nodes to providers."""
    parts = session.get_provider_graph_assignment_info()
    taken = sum(len(part.get_nodes()) for part in parts if part.ep_name == provider)
    left = [f"{node.name} ({node.op_type})" for part in parts if part.ep_name != provider for node in part.get_nodes()]
    return Nodes(provider, taken, tuple(left))


def survived(
    kind: str,
    files: Sequence[Path],
    bundle: Path,
    identity: str,
    module: str,
    placement: Placement,
    *,
    graphs: int = 1,
) -> None:
    """ArtifactError for a graph that was damaged since it was converted, or of which ONNX Runtime would die.

    EngineError if it would on a device that has a driver.

    ``files`` are those of the ``graphs``, one or more, and of their weights. A graph of whose bytes ``bundle`` has the
    hash is as our converter wrote it: only graphs are read for that, since wrong weights make wrong numbers, and
    nothing worse. Others, and all on a device that has a driver, run once in a child process, by ``main`` of
    ``module``; that is remembered as ``kind``. All files are read for their hashes before that.
    """
    device = placement.device
    there = resolve(device)
    key: dict[str, Any] = {"file": identity, "engine": runtime().__version__, "device": device}
    if not there.is_cpu:
        package = there.onnx.package
        key |= {"plugin": package and f"{package} {installed_version(package)}", "environment": environment()}
        # Samples tell too little of what a device compiled: its driver may take any bytes, and answer nonsense.
        key |= {"told": placement.provider_options, "states": [file_state(file) for file in files]}
    is_known = user_cache.recall(kind, key) is not None
    try:
        if (bundle / manifest.NAME).exists():
            checked = files[:graphs] if there.is_cpu or is_known else files
            manifest.verify(bundle, only={file.relative_to(bundle).as_posix() for file in checked})
            if there.is_cpu:
                return
    except NotVerifiableError:  # another program wrote it
        pass
    if is_known or not crash_probe.has_children():
        return
    nbytes = sum(file.stat().st_size for file in files)
    tried = json.dumps(placement.to_json())
    if _PROBE.run(module, files[0], tried, nbytes=nbytes, device="" if there.is_cpu else device) is not None:
        user_cache.remember(kind, key, {"survived": True})


def fits(found: Sequence[Any], wanted: Sequence[int | None]) -> bool:
    """Whether a shape of a graph, where names stand for any size, may be the one that is wanted (None: any)."""
    return len(found) == len(wanted) and all(
        not isinstance(size, int) or want is None or size == want for size, want in zip(found, wanted, strict=True)
    )
