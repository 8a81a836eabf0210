"""llama.cpp's encoder as the vision tower's engine: mmproj files, a tile at a time.

Its library wants a text model, of which it asks nothing here but a vocabulary for the marks around an image: a file
without weights is made for it. Pixels reach it as bytes, which it normalises by the file's own mean and deviation; so
tiles go back to the levels that they came from, exactly. It knows no stop, but asks a callback between the nodes of its
graph whether to go on.

    python -m edge_llama.backends.llama_cpp.vision MMPROJ      # what a child process does
"""

import ctypes
import itertools
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import crash_probe
from edge_llama.backends.base import ON_CPU, AbortedError, Placement
from edge_llama.backends.device_names import environment
from edge_llama.backends.llama_cpp import build_probe, offload
from edge_llama.backends.llama_cpp.first_run import PROBE
from edge_llama.backends.llama_cpp.text import native_log, the_engine
from edge_llama.backends.llama_cpp.tiny_models import tiny_tower, tiny_vocabulary
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.integrity import ROOT
from edge_llama.files.mmproj import read_mmproj
from edge_llama.host import user_cache

_log = logging.getLogger(__name__)
_NODES = 4
"""Nodes of the graph between two looks at whether to stop: a tenth of a layer."""
_TRIAL, _ORDER = "first-encoding", "encoder-order"
_REFUSED = "the file is damaged, or newer than this llama.cpp: convert it again, or update llama-cpp-python"


class LlamaCppVision:
    """A vision tower of an mmproj file. Keeps the Protocol :class:`edge_llama.backends.base.VisionTower`."""

    def __init__(self, artifact: VisionArtifact, *, threads: int, placement: Placement = ON_CPU) -> None:
        """Load the tower. ArtifactError if llama.cpp refuses the file or would die of it; EngineError.

        With a strict ``placement`` also for nodes that the CPU would compute.
        """
        is_ours = artifact.header is not None and ROOT in artifact.header.fields
        if placement.devices or not is_ours:  # a driver, or what another program wrote
            _try_out(artifact, placement)
        self._is_transposed = _transposes()
        self._raw = _Encoder(artifact, threads, placement)
        self._artifact = artifact

    def encode(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n, 3, side, side)`` normalised pixels to ``(n, tokens_per_tile, n_embd)`` embeddings."""
        spec = self._artifact.spec
        embeddings = np.empty((len(tiles), spec.tokens_per_tile, spec.n_embd), np.float32)
        side = round(spec.tokens_per_tile**0.5)
        for number, tile in enumerate(tiles):
            found = self._raw.encode(levels(tile, spec.mean, spec.std))
            if self._is_transposed:
                found = found.reshape(side, side, -1).swapaxes(0, 1).reshape(found.shape)
            embeddings[number] = found
        return embeddings

    def use_threads(self, count: int) -> None:
        """The encoder's number of threads is fixed when it is opened."""

    def abort(self) -> None:
        """Stop the ``encode`` that is running, and refuse others until ``resume``. Any thread may call it."""
        self._raw.is_aborted = True

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._raw.is_aborted = False

    def close(self) -> None:
        """Free the weights, once an ``encode`` that runs has stopped. May be called twice, and by any thread."""
        self.abort()
        self._raw.close()


def levels(tile: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.uint8]:
    """The pixels ``(side, side, 3)`` from 0 to 255 that a normalised tile ``(3, side, side)`` was made of."""
    shift, scale = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return np.ascontiguousarray(((tile * scale + shift) * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


class _Encoder:
    """llama.cpp's encoder as it is."""

    def __init__(self, artifact: VisionArtifact, threads: int, placement: Placement = ON_CPU) -> None:
        llama = the_engine()
        self._lib = lib = _library()
        self._artifact = artifact
        self._llama = llama
        options = llama.llama_model_default_params()
        options.vocab_only = True
        with _file(tiny_vocabulary(), ".gguf") as path:
            self._text: Any = llama.llama_model_load_from_file(os.fsencode(path), options)
        if not self._text:
            raise EngineError("llama.cpp cannot load a vocabulary of ours", remedy="update llama-cpp-python")
        params = lib.mtmd_context_params_default()
        params.use_gpu = bool(placement.devices)
        if placement.devices:
            params.device = offload.pointer(placement.devices[0])
        params.print_timings = params.warmup = False
        params.n_threads = threads
        self._placement, self._astray = placement, dict[str, None]()
        self.is_aborted = self._is_stopped = False
        self._looks_at_nodes = bool(placement.devices)
        """Until the first encoding is done: the graph of each has the same."""
        nodes = itertools.count()

        def goes_on(node: int | None, is_asked: bool, _data: int | None) -> bool:
            """Before a node: whether to call again after it. After it: whether to go on."""
            if is_asked:
                if self._looks_at_nodes and node and (name := offload.on_cpu(node)):
                    self._astray[name] = None
                return next(nodes) % _NODES == 0
            self._is_stopped = self.is_aborted
            return not self._is_stopped

        self._goes_on = params.cb_eval = llama.ggml_backend_sched_eval_callback(goes_on)
        self._in_use = threading.Lock()
        self._context: Any = lib.mtmd_init_from_file(os.fsencode(artifact.path), self._text, params)
        if not self._context:
            llama.llama_model_free(self._text)
            if placement.devices:
                raise EngineError(
                    f"{artifact.path}: llama.cpp cannot load it on {placement.device}",
                    remedy="take --vision-device cpu",
                )
            raise ArtifactError(f"{artifact.path}: llama.cpp cannot load it", remedy=_REFUSED)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``(side, side, 3)`` to ``(tokens_per_tile, n_embd)``, in the encoder's own order."""
        with self._in_use:
            if not self._context:
                raise EngineError(f"{self._artifact.path}: the tower is closed", remedy="open it again")
            return self._encode(pixels)

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        lib, spec = self._lib, self._artifact.spec
        bitmap = lib.mtmd_bitmap_init(spec.tile, spec.tile, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = lib.mtmd_input_chunks_init()
        try:
            marker = lib.mtmd_default_marker()
            text = lib.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=False)
            status = lib.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1)
            found = () if status else self._images(chunks)
            count = sum(int(lib.mtmd_input_chunk_get_n_tokens(chunk)) for chunk in found)
            if len(found) != 1 or count != spec.tokens_per_tile:
                raise self._failed(f"it makes {count:,} tokens of a tile, expected {spec.tokens_per_tile:,}")
            self._is_stopped = self.is_aborted
            status = 0 if self._is_stopped else lib.mtmd_encode_chunk(self._context, found[0])
            if self._is_stopped:  # perhaps in the midst of it: what it made is worth nothing
                raise AbortedError
            if status:
                raise self._failed(f"encoding ended with {status}")
            self._check_nodes()
            data = lib.mtmd_get_output_embd(self._context)
            return np.ctypeslib.as_array(data, shape=(spec.tokens_per_tile, spec.n_embd)).copy()
        finally:
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_bitmap_free(bitmap)

    def _check_nodes(self) -> None:
        """EngineError if the CPU computed nodes although the placement is strict; else that is told once."""
        if self._looks_at_nodes and (problem := offload.told(list(self._astray))):
            offload.tell(problem, self._artifact.path, self._placement)
        self._looks_at_nodes = False

    def _images(self, chunks: Any) -> tuple[Any, ...]:
        lib = self._lib
        every = (lib.mtmd_input_chunks_get(chunks, at) for at in range(lib.mtmd_input_chunks_size(chunks)))
        return tuple(
            chunk for chunk in every if lib.mtmd_input_chunk_get_type(chunk) == lib.MTMD_INPUT_CHUNK_TYPE_IMAGE
        )

    def _failed(self, why: str) -> EngineError:
        return EngineError(f"{self._artifact.path}: llama.cpp's encoder failed: {why}", remedy="use the ONNX tower")

    def close(self) -> None:
        with self._in_use:
            if self._context:
                self._lib.mtmd_free(self._context)
                self._llama.llama_model_free(self._text)
                self._context = self._text = None


@cache
def _library() -> Any:
    """The module of llama.cpp's multimodal library; its log goes where the engine's goes."""
    try:
        from llama_cpp import mtmd_cpp  # noqa: PLC0415 - loads native code
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(
            f"llama.cpp's encoder cannot be loaded: {error}", remedy="reinstall llama-cpp-python"
        ) from error
    mtmd_cpp.mtmd_log_set(native_log(), ctypes.c_void_p(0))
    return mtmd_cpp


def _transposes() -> bool:
    """Whether the installed encoder gives a tile's tokens by columns: its pixel shuffle lacks the last permutation.

    Found out once for each build, by a small tower that keeps patches apart: it sees a picture of which one corner is
    bright, and the token that differs shows the order.
    """
    key = {"engine": build_probe.build()}
    found = user_cache.recall(_ORDER, key)
    if found is None:
        with _file(tiny_tower(), ".gguf") as path:
            found = PROBE.run(__name__, path) if crash_probe.has_children() else None
            found = {"bright": _bright(path)} if found is None else found
        user_cache.remember(_ORDER, key, found)
    if found.get("bright") not in (1, 2):
        raise EngineError(
            "llama.cpp's encoder orders a tile's tokens in a way that is not known here",
            remedy="use the ONNX tower, or another version of llama-cpp-python",
        )
    return bool(found["bright"] == 2)


def _try_out(artifact: VisionArtifact, placement: Placement) -> None:
    """ArtifactError if llama.cpp would end the process on this file, EngineError if on a GPU: a child meets it."""
    key: dict[str, Any] = {"file": artifact.identity, "engine": build_probe.build()}
    if placement.devices:
        key |= {"devices": list(placement.devices), "environment": environment()}
    if not crash_probe.has_children() or user_cache.recall(_TRIAL, key) is not None:
        return
    device = placement.device if placement.devices else ""
    if PROBE.run(__name__, artifact.path, json.dumps(placement.to_json()), device=device) is not None:
        user_cache.remember(_TRIAL, key, {"survived": True})


def _bright(path: Path, placement: Placement = ON_CPU) -> int | None:
    """The only token that differs from the others when the upper right corner is bright; None if there is none."""
    artifact = read_mmproj(path)
    side = artifact.spec.tile
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: side // 2, side // 2 :] = 255
    encoder = _Encoder(artifact, threads=1, placement=placement)
    try:
        found = encoder.encode(pixels)
    finally:
        encoder.close()
    differs = np.abs(found - np.median(found, axis=0)).max(axis=1) > 1e-3
    return int(differs.argmax()) if differs.sum() == 1 else None


@contextmanager
def _file(content: bytes, suffix: str) -> Iterator[Path]:
    """``content`` in a file of its own, as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tiny{suffix}"
        path.write_bytes(content)
        yield path


def main(path: str, placement: str = "") -> None:
    """The child: open the file, encode a picture, say what came of it."""
    crash_probe.begin()
    try:
        said = {"bright": _bright(Path(path), Placement.from_json(json.loads(placement)) if placement else ON_CPU)}
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
        said = {"bright": None}
    crash_probe.end(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
