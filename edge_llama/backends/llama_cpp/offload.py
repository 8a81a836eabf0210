"""A placement as llama.cpp takes it, and what became of it: each layer's device, and nodes that the CPU computes.

llama.cpp says in its log which device a layer was given. What the device does not know how to compute, the CPU does, in
silence; so a few tokens are decoded while every node of the graph is asked whose memory it is in.
"""

import ctypes
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from edge_llama.backends.base import Placement, first_of
from edge_llama.backends.llama_cpp.devices import ggml_function, ggml_text, pointer_of
from edge_llama.backends.llama_cpp.gpus import EXPERTS
from edge_llama.errors import EngineError

_log = logging.getLogger(__name__)
_ASSIGNED = re.compile(r"load_tensors: layer +(\d+) assigned to device (.+), is_swa")
_BUFFER = 8
"""Where a ggml_tensor has the address of its buffer: after its type, an int, and what aligns it (ggml.h)."""
_NO_WORK = ("NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")
_LAYER = re.compile(r"(.+)-(\d+)")
_INPUT = ("embd", "pos_embd", "inp_")
"""How nodes are called that make the graph's input: rows of tables, which stay on the CPU."""
_FEW = 16
"""Fewer than 32 rows: from there on llama.cpp may leave a norm to the layer before, wherever that is."""
_SHOWN = 5


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``, which llama-cpp-python does not declare."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def apply(placement: Placement, options: Any, lib: Any) -> list[Any]:
    """Write the placement into ``llama_model_params``; what is returned must live until the model is loaded.

    EngineError if a device is gone.
    """
    pointers = [pointer(name) for name in placement.devices]
    devices = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)  # none at all: no GPU takes part
    options.devices = ctypes.cast(devices, ctypes.c_void_p)
    options.n_gpu_layers = placement.gpu_layers
    kept: list[Any] = [devices]
    if pointers:
        modes = {"row": lib.LLAMA_SPLIT_MODE_ROW, "tensor": lib.LLAMA_SPLIT_MODE_TENSOR}
        options.split_mode = modes.get(placement.split_mode, lib.LLAMA_SPLIT_MODE_LAYER)
    if placement.tensor_split:
        shares = (ctypes.c_float * lib.llama_max_devices())(*placement.tensor_split)
        options.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    if placement.cpu_moe:
        overrides = _overrides(placement.cpu_moe)
        options.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept.append(overrides)
    return kept


def pointer(name: str) -> int:
    """The address of the device; EngineError if there is none of that name."""
    found = pointer_of(name)
    if found is None:
        raise EngineError(f"the device {name} is gone", remedy="edge-llama devices lists those that are here")
    return found


def _overrides(layers: int) -> Any:
    """A pattern for the experts of each layer that stay on the CPU, and an end."""
    cpu = ggml_function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
    patterns = [_Override(f"blk\\.{layer}{EXPERTS}".encode(), cpu) for layer in range(layers)]
    return (_Override * (layers + 1))(*patterns, _Override(None, None))


_loading = threading.local()


@contextmanager
def assignments() -> Iterator[dict[int, str]]:
    """The device of each layer, the output after the last, as the model that this thread loads within is told."""
    layers: dict[int, str] = {}
    _loading.layers = layers
    try:
        yield layers
    finally:
        _loading.layers = None


def heard(line: str) -> None:
    """A line of llama.cpp's log."""
    layers = getattr(_loading, "layers", None)
    if layers is not None and (found := _ASSIGNED.search(line)):
        layers[int(found[1])] = found[2]


def on_cpu(node: int) -> str | None:
    """The name and operation of a graph's node whose result lies in the CPU's memory; None for others.

    ``node``: the address of a ggml_tensor, as llama.cpp gives it to ``cb_eval`` when the graph has its memory.
    """
    operation = ggml_text("ggml_op_desc", node)
    buffer = ctypes.c_void_p.from_address(node + _BUFFER).value
    if operation in _NO_WORK or not buffer:
        return None
    if not ggml_function("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)(buffer):
        return None
    return f"{ggml_text('ggml_get_name', node)} ({operation})"


def computed_on_cpu(lib: Any, model: Any, params: Any) -> list[str]:
    """Names of the graph's nodes whose results lie in the CPU's memory, in the graph's order.

    ``params`` are those of a context, of which another is made here. EngineError if it can't be made, or fails.
    """
    found: dict[str, None] = {}

    def look(node: int, is_asked: bool, _data: int | None) -> bool:
        if is_asked and (name := on_cpu(node)):
            found[name] = None
        return not is_asked  # no node is waited for

    params.cb_eval = callback = lib.ggml_backend_sched_eval_callback(look)
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise EngineError("llama.cpp cannot make a context on these devices", remedy="take a smaller --n-ctx")
    try:
        for count in (_FEW, 1):
            tokens = (ctypes.c_int32 * count)()
            if status := lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)):
                raise EngineError(f"llama.cpp fails at its first tokens there, with status {status}")
    finally:
        lib.llama_free(context)
        del callback
    return list(found)


def described(layers: Mapping[int, str], output: int) -> str:
    """``layers 0 to 14 on CPU, 15 to 29 and the output on Vulkan0``; ``output`` is the output's number."""
    parts = []
    for device, group in groupby(sorted(layers), key=lambda layer: layers[layer]):
        numbers = list(group)
        repeating = [number for number in numbers if number < output]
        span = f"{repeating[0]:,} to {repeating[-1]:,}" if len(repeating) > 1 else "".join(map(str, repeating))
        named = [span] * bool(repeating) + ["the output"] * (output in numbers)
        parts.append(f"{' and '.join(named)} on {device}")
    return f"layers {', '.join(parts)}" if parts else ""


def astray(placement: Placement, layers: Mapping[int, str], nodes: Iterable[str], output: int) -> str:
    """Layers and nodes that the CPU has although the placement gives them to a GPU, by their names; "" for none."""
    first = output + 1 - placement.gpu_layers
    if not layers and placement.gpu_layers:
        return "llama.cpp does not say where its layers are"
    wrong = [str(layer) for layer, device in layers.items() if layer >= first and not _is_there(device, placement)]
    if wrong:
        return f"layers on the CPU: {', '.join(wrong)}"
    return told([node for node in nodes if _is_astray(node, first, placement.cpu_moe, output)])


def _is_there(device: str, placement: Placement) -> bool:
    """Whether ggml's ``device`` is one of the placement's, or the group of them that shares each matrix."""
    group = re.fullmatch(r"Meta\((.+)\)", device)
    return set(group[1].split(",") if group else [device]) <= set(placement.devices)


def told(nodes: Sequence[str]) -> str:
    """That the CPU computes these, by the names of the first; "" for none."""
    return f"the CPU computes {first_of(nodes, _SHOWN)}" if nodes else ""


def tell(problem: str, path: Path, placement: Placement) -> None:
    """Warn of a ``problem`` with where the model at ``path`` is; EngineError if the placement is strict."""
    if placement.is_strict:
        raise EngineError(
            f"{path}: device {placement.device}: {problem}",
            remedy="take another device, or leave --strict-device out",
        )
    _log.warning("%s: device %s: %s", path, placement.device, problem)


def _is_astray(node: str, first: int, cpu_moe: int, output: int) -> bool:
    """Whether a node is of a layer from ``first`` on, and none of experts that stay.

    Those without a number are in no layer, or in one that is not told: they count where nothing but embeddings stays.
    """
    name = node.partition(" ")[0]
    if name.startswith("result_"):
        return first <= output
    found = _LAYER.fullmatch(name)
    if found is None:
        return not first and not name.startswith(_INPUT)
    layer = int(found[2])
    return first <= layer and not (layer < cpu_moe and found[1].startswith("ffn_moe_"))
