"""Weights as the processor's kernels want them, in the user's cache folder: mapped, they take no memory of their own.

ONNX Runtime maps a model's weights, but copies most of them when it packs them for its kernels, at every start. So the
packed ones are written once beside an optimized graph, and from then on that is opened. Losing the folder loses
nothing but the time to write it again.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_llama.backends.onnxruntime.providers import CPU, runtime
from edge_llama.files.identity import sampled_sha256
from edge_llama.files.onnx_text import OnnxArtifact
from edge_llama.host import devices, user_cache
from edge_llama.host.atomic import new_folder

_log = logging.getLogger(__name__)
VARIABLE = "EDGE_LLAMA_PREPACKED"
"""Set to 0, nothing is kept: a model then takes its packed weights' size in memory."""
_KIND = "prepacked"
_GRAPH, _DATA, _ABOUT = "model.onnx", "model.onnx.data", "about.json"


def graph(artifact: OnnxArtifact, device: str) -> Path:
    """The graph to open for ``artifact``: that of the cache, which is made if it is not there, or the model's own."""
    if os.environ.get(VARIABLE) == "0" or device not in ("auto", "cpu"):
        return artifact.path
    try:
        key = {"model": artifact.identity(), "engine": runtime().__version__, "cpu": asdict(devices.cpu())}
        folder = user_cache.folder() / _KIND / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        if not _is_whole(folder, key):
            _drop_old(folder.parent)
            _make(artifact.path, folder, key)
        return folder / _GRAPH
    except Exception as error:
        _log.debug("%s: its packed weights are not kept: %s", artifact.path, error)
        return artifact.path


def _is_whole(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the cache is there as it was written: native code will read it."""
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        return bool(about["key"] == json.loads(json.dumps(key)) and about["files"] == _hashes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(model: Path, folder: Path, key: Mapping[str, Any]) -> None:
    """Write the cache, complete or not at all; what is there already is replaced."""
    with new_folder(folder) as partial:
        _write(model, partial)
        about = {"key": key, "path": str(model.resolve()), "files": _hashes(partial)}
        (partial / _ABOUT).write_text(json.dumps(about, indent=1), "utf-8")


def _write(model: Path, folder: Path) -> None:
    """Have ONNX Runtime open the model and save what it made of it."""
    lib = runtime()
    options = lib.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / _GRAPH)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _DATA)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    lib.InferenceSession(str(model), options, providers=[CPU])


def _hashes(folder: Path) -> dict[str, str]:
    return {
        name: sampled_sha256(folder / name) for name in (_GRAPH, _DATA) if name == _GRAPH or (folder / name).exists()
    }


def _drop_old(folder: Path) -> None:
    """Remove what no model opens any more: it is gone, or the engine is another by now."""
    for about in folder.glob(f"*/{_ABOUT}"):
        try:
            found = json.loads(about.read_text("utf-8"))
            is_used = Path(found["path"]).exists() and found["key"]["engine"] == runtime().__version__
        except (OSError, ValueError, KeyError, TypeError):
            is_used = False
        if not is_used:
            shutil.rmtree(about.parent, ignore_errors=True)
