"""The folder around compiled graphs: a bundle like the model's own, with all that the graphs need beside them."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from edge_llama.backends.onnxruntime.providers import OnnxDevice
from edge_llama.backends.registry import engine_for
from edge_llama.backends.towers import read_bundle
from edge_llama.files import manifest
from edge_llama.files.artifact import Bundle, VisionArtifact
from edge_llama.files.compiled import NAME, SETTINGS, Compiled
from edge_llama.files.identity import sha256_of
from edge_llama.files.onnx_graph_file import data_of
from edge_llama.files.onnx_static import StaticArtifact, read_static
from edge_llama.files.onnx_text import CONFIG, files_of, text_file
from edge_llama.host.regular_files import content_of

_GENAI: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "QNNExecutionProvider": ("QNN", {"backend_type": "htp"}),
    "OpenVINOExecutionProvider": ("OpenVINO", {}),
}
"""What onnxruntime-genai calls a provider, and what it must be told."""
Group = Mapping[str, tuple[Path, ...]]
"""By the new file of each graph, its own files: graphs of one group have weights in common."""


@dataclass(frozen=True, slots=True)
class Towers:
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
    def groups(self) -> list[Group]:
        """Text first: of each part of its layers the graph of a prompt and that of a token."""
        pairs = zip(self.text.prompts, self.text.tokens, strict=True) if self.text else ()
        found: list[Group] = [{_context(graph.path.name): graph.files for graph in pair} for pair in pairs]
        if self.vision:
            name = self.vision.path.relative_to(self.bundle.path).as_posix()
            found.append({_context(name): self.vision.files})
        return found


def settings_of(text: StaticArtifact) -> str:
    """A hash of what lies beside the graphs, but for the tokenizer, which the identity has."""
    graphs = {*text.files, text.tokenizer}
    return sha256(b"".join(content_of(file) for file in files_of(text.path) if file not in graphs)).hexdigest()


def _context(name: str) -> str:
    """What a graph is called once it is compiled."""
    return f"{PurePosixPath(name).with_suffix('')}_ctx.onnx"


def write(towers: Towers, device: OnnxDevice, record: Compiled, folder: Path) -> None:
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


def _kept(towers: Towers) -> Iterator[Path]:
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
    asked = dict(text.split("=", 1) for text in record.options)
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


def _manifest(towers: Towers, folder: Path) -> manifest.Manifest:
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
