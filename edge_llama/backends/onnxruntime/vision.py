"""ONNX Runtime as the vision tower's engine.

It ends the process on some graphs (1.32: an attribute that disagrees with the node's outputs), so it is given those
that are as our converter wrote them, and others only after a child process has survived them.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import crash_probe
from edge_llama.backends.base import ON_CPU, AbortedError, Placement
from edge_llama.backends.onnxruntime.providers import runtime, why
from edge_llama.backends.onnxruntime.session import fits, open_session, survived
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.manifest import bundle_of
from edge_llama.files.onnx_vision import VISION_INPUT, VISION_OUTPUT, read_from_bundle

_log = logging.getLogger(__name__)
_TRIAL = "first-onnx-encoding"
_BATCH = 1
"""Tiles in one run, which is all that a graph for NPUs takes. 4 were 7 % faster at best (Scout's width, 2 threads), for
300 MB more; 17 take 1.6 GB more."""


def require(artifact: VisionArtifact, placement: Placement = ON_CPU) -> None:
    """ArtifactError for a graph that was damaged since it was converted, or of which ONNX Runtime would die."""
    survived(_TRIAL, artifact.files, bundle_of(artifact.path), artifact.identity, __name__, placement)


class OnnxVision:
    """A vision tower of an ONNX file. Keeps the Protocol :class:`edge_llama.backends.base.VisionTower`."""

    def __init__(self, artifact: VisionArtifact, *, threads: int, placement: Placement = ON_CPU) -> None:
        """Load the tower where ``placement`` says: see :func:`edge_llama.backends.onnxruntime.session.open_session`.

        Raises ArtifactError if ONNX Runtime refuses the file, OptionError or EngineError if there is no such device,
        if it can't run the file, or if there is no engine.
        """
        self._artifact = artifact
        self._lib = lib = runtime()
        options = lib.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the text tower has the cores then
        if artifact.format == "a16w8":  # or else the CPU's provider rounds activations of 16 bits to 8
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._session: Any
        self._session, nodes = open_session(artifact.path, artifact.path, placement, options)
        if nodes and nodes.left:  # it is opened with the first image, when the rest has been told
            _log.warning("%s: %s", artifact.path, nodes)
        self._check()
        self._run_options: Any = lib.RunOptions()
        self._run_options.log_severity_level = 4
        # What a run takes beyond the weights is given back after it.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def encode(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n, 3, side, side)`` normalised pixels to ``(n, tokens_per_tile, n_embd)`` embeddings."""
        spec = self._artifact.spec
        embeddings = np.empty((len(tiles), spec.tokens_per_tile, spec.n_embd), np.float32)
        for start in range(0, len(tiles), _BATCH):
            embeddings[start : start + _BATCH] = self._run(tiles[start : start + _BATCH])
        return embeddings

    def _run(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        session = self._session
        if session is None:
            raise EngineError(f"{self._artifact.path}: the tower is closed", remedy="open it again")
        if self._run_options.terminate:
            raise AbortedError
        try:
            (embeddings,) = session.run([VISION_OUTPUT], {VISION_INPUT: np.ascontiguousarray(tiles)}, self._run_options)
        except Exception as error:
            if self._run_options.terminate:
                raise AbortedError from error
            raise EngineError(f"{self._artifact.path}: ONNX Runtime failed: {why(error)}") from error
        spec = self._artifact.spec
        if embeddings.shape != (len(tiles), spec.tokens_per_tile, spec.n_embd):
            raise self._unfit(f"it makes {[*embeddings.shape]} of {len(tiles)} tiles")
        return embeddings  # type: ignore[no-any-return]

    def use_threads(self, count: int) -> None:
        """ONNX Runtime's number of threads is fixed when the tower is opened."""

    def abort(self) -> None:
        """Stop the ``encode`` that is running, and refuse others until ``resume``. Any thread may call it."""
        self._run_options.terminate = True

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._run_options.terminate = False

    def close(self) -> None:
        """Free the weights, once an ``encode`` that runs has stopped. May be called twice, and by any thread."""
        self.abort()
        self._session = None

    def _check(self) -> None:
        """ArtifactError unless the graph takes and gives what the specification says."""
        spec = self._artifact.spec
        expected = {
            VISION_INPUT: ("input", self._session.get_inputs(), (3, spec.tile, spec.tile)),
            VISION_OUTPUT: ("output", self._session.get_outputs(), (spec.tokens_per_tile, spec.n_embd)),
        }
        for name, (kind, found, shape) in expected.items():
            if [node.name for node in found] != [name]:
                names = ", ".join(node.name for node in found)
                raise self._unfit(f"its {kind}s are {names or 'none'}, expected {name}")
            (node,) = found
            if node.type != "tensor(float)" or not fits(node.shape, (_BATCH, *shape)):
                raise self._unfit(f"its {kind} {name} is {node.type} {node.shape}, expected float (tiles, *{shape})")

    def _unfit(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self._artifact.path}: {why}", remedy="convert the vision tower again")


def main(path: str, placement: str) -> None:
    """The child: open the file, encode a tile."""
    crash_probe.begin()
    try:
        artifact = read_from_bundle(Path(path))
        tower = OnnxVision(artifact, threads=1, placement=Placement.from_json(json.loads(placement)))
        tower.encode(np.zeros((1, 3, artifact.spec.tile, artifact.spec.tile), np.float32))
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
    crash_probe.end()
