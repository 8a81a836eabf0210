"""How many GPUs a model needs on a serving engine (vLLM), and the command that starts it there.

The rules are vLLM's: a tensor parallel size must divide the query heads and the KV heads, and what a GPU gets of a
matrix's columns must be whole groups of quantized weights; layers are shared out between pipeline stages. Of a GPU's
memory vLLM takes nine tenths (``--gpu-memory-utilization``), from which activations and CUDA graphs come first.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.files.shape import Stored, TextShape

UTILIZATION = 0.9
_WORK_BYTES = 3 * 10**9
"""Of a GPU, for activations of a batch and CUDA graphs: vLLM measures it when it starts."""
_NODE = 8
"""GPUs in a machine, as a rule."""
_MOST = 64
_HALF = 2
QUANTS = ("w4a16", "bf16", "f16")
DTYPES = {"bf16": "bfloat16", "f16": "float16"}
_ATTENTION = ("attn_q.", "attn_k.", "attn_v.", "attn_output.")
_LINEAR = ("attn_q.", "attn_k.", "attn_v.", "attn_output.", "ffn_gate.", "ffn_up.", "ffn_down.", "_shexp.", "_exps.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAsked:
    """What many people shall have at once, on GPUs of ``gpu_bytes``."""

    gpu_bytes: int = 80 * 10**9
    users: int = 32
    n_ctx: int = 8192
    quant: str = "w4a16"
    group: int = 128
    scale_dtype: str = "bf16"
    node: int = _NODE
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Names and folders of LoRA adapters that are served beside the model."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """GPUs, and how the model is shared out among them."""

    tensor_parallel: int
    pipeline_parallel: int
    machines: int
    weight_bytes: int
    kv_bytes: int
    """Of all users with full contexts."""
    gpu_bytes: int
    """Of each GPU, what weights and KV cache take."""
    room: int
    """Of each GPU, what they may take."""
    command: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor_parallel * self.pipeline_parallel

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "gpus": self.gpus, "command_line": self.command_line}

    @property
    def command_line(self) -> str:
        """As a shell takes it."""
        return shlex.join(self.command)


def plan_fleet(shape: TextShape, vision_bytes: int, asked: FleetAsked, model: str) -> FleetPlan:
    """The fewest GPUs on which the model, whose shape is in bf16, fits with all users' contexts.

    ``model`` is what the command serves. OptionError for what is no number, for a group that the model's shapes don't
    divide into, and for a model that does not fit :data:`_MOST` GPUs.
    """
    _check(shape, asked)
    quantized = _quantized(shape, asked)
    weights = vision_bytes + sum(_stored(tensor, asked, tensor in quantized) for tensor in shape.tensors)
    kv_cache = asked.users * asked.n_ctx * shape.kv_values_per_token * _HALF
    room = int(asked.gpu_bytes * UTILIZATION) - _WORK_BYTES
    for tensor, pipeline in _shares(shape, asked):
        gpus = tensor * pipeline
        each = -(-(weights + kv_cache) // gpus)
        if each <= room:
            machines = -(-gpus // asked.node)
            command = _command(asked, model, tensor, pipeline, machines)
            return FleetPlan(
                tensor, pipeline, machines, weights, kv_cache, each, room, command, _notes(asked, machines)
            )
    raise OptionError(
        f"{weights:,} bytes of weights and {kv_cache:,} of KV cache do not fit {_MOST} GPUs of {asked.gpu_bytes:,}",
        remedy="fewer users (--users), a smaller context (--n-ctx), or larger GPUs (--gpu)",
    )


def _check(shape: TextShape, asked: FleetAsked) -> None:
    for name, value, least in (
        ("--users", asked.users, 1),
        ("--gpu", asked.gpu_bytes, 10**9),
        ("--n-ctx", asked.n_ctx, 2),
    ):
        if value < least:
            raise OptionError(f"{name} is {value:,}, expected {least:,} or more", remedy="give a larger number")
    if asked.quant not in QUANTS:
        raise OptionError(f"--quant {asked.quant}: not for a fleet", remedy=f"known: {', '.join(QUANTS)}")
    if asked.n_ctx > shape.n_ctx_train:
        raise OptionError(
            f"--n-ctx {asked.n_ctx:,} is more than the {shape.n_ctx_train:,} that the model was trained for",
            remedy="give at most those",
        )
    if asked.quant != "w4a16":
        return
    odd = next((tensor for tensor in _quantized(shape, asked) if tensor.shape[-1] % asked.group), None)
    if odd is not None:
        fitting = [size for size in (128, 64, 32) if size < asked.group and odd.shape[-1] % size == 0]
        raise OptionError(
            f"--group {asked.group}: {odd.name} has rows of {odd.shape[-1]:,}",
            remedy=f"take {fitting[0]}" if fitting else "take --quant bf16",
        )


def _quantized(shape: TextShape, asked: FleetAsked) -> Sequence[Stored]:
    """The matrices that w4a16 quantizes, as the converter has it: linear layers, but not a Llama 4's attention."""
    if asked.quant != "w4a16":
        return ()
    is_llama4 = any("_shexp." in tensor.name for tensor in shape.tensors)
    return [tensor for tensor in shape.tensors if _is_linear(tensor.name, with_attention=not is_llama4)]


def _is_linear(name: str, *, with_attention: bool = True) -> bool:
    """Whether a tensor of this GGUF name is a linear layer's matrix."""
    roles = _LINEAR if with_attention else [role for role in _LINEAR if role not in _ATTENTION]
    return name.startswith("blk.") and name.endswith(".weight") and any(role in name for role in roles)


def _stored(tensor: Stored, asked: FleetAsked, is_quantized: bool) -> int:
    """Bytes of a tensor as vLLM holds it."""
    count = tensor.nbytes * tensor.format.block_size // tensor.format.block_bytes
    return count // 2 + count // asked.group * _HALF if is_quantized else count * _HALF


def _shares(shape: TextShape, asked: FleetAsked) -> Iterator[tuple[int, int]]:
    """Tensor and pipeline parallel sizes in the order in which they are tried: one stage as long as a machine does."""
    sizes = [size for size in range(1, asked.node + 1) if _divides(shape, size, asked)]
    yield from ((size, 1) for size in sizes)
    most = sizes[-1]
    yield from ((most, stages) for stages in range(2, min(_MOST // most, shape.n_layer) + 1))


def _divides(shape: TextShape, size: int, asked: FleetAsked) -> bool:
    """Whether heads, KV heads and groups can be shared out among so many GPUs."""
    if shape.n_head % size or shape.n_head_kv % size:
        return False
    matrices = [t for t in shape.tensors if _is_linear(t.name)]
    group = asked.group if asked.quant == "w4a16" else 1
    rows = all(t.shape[-2] % size == 0 for t in matrices)
    return rows and all(t.shape[-1] % (size * group) == 0 for t in matrices if _is_cut_by_columns(t.name))


def _is_cut_by_columns(name: str) -> bool:
    """Whether each GPU has some of a matrix's columns: those that follow on others of which it has rows."""
    return "attn_output" in name or "ffn_down" in name


def _command(asked: FleetAsked, model: str, tensor: int, pipeline: int, machines: int) -> tuple[str, ...]:
    dtype = DTYPES[asked.scale_dtype if asked.quant == "w4a16" else asked.quant]
    found = ["vllm", "serve", model, "--dtype", dtype]
    found += ["--max-model-len", str(asked.n_ctx), "--max-num-seqs", str(asked.users)]
    found += ["--tensor-parallel-size", str(tensor)] if tensor > 1 else []
    found += ["--pipeline-parallel-size", str(pipeline)] if pipeline > 1 else []
    if machines > 1:
        found += ["--nnodes", str(machines), "--node-rank", "0", "--master-addr", "ADDRESS"]
    if asked.adapters:
        pairs: Sequence[str] = [f"{name}={folder}" for name, folder in asked.adapters.items()]
        found += ["--enable-lora", "--max-loras", str(len(pairs)), "--lora-modules", *pairs]
    return tuple(found)


def _notes(asked: FleetAsked, machines: int) -> tuple[str, ...]:
    notes = []
    if machines > 1:
        notes.append(
            f"on each of the other {machines - 1} machines the same with its own --node-rank, and --headless; ADDRESS "
            "is the first one's"
        )
    if asked.quant == "w4a16":
        notes.append(
            f"its folder: edge-llama convert CHECKPOINT OUTPUT --to safetensors --quant w4a16 --group {asked.group} "
            f"--scale-dtype {asked.scale_dtype}"
        )
    return tuple(notes)
