"""Proof that the installed llama.cpp works on this processor: a few tokens decoded in a child process.

Some virtual machines announce AMX and fault on its first instruction; a build made elsewhere may use instructions
that this processor lacks. Either kills the process in the first ``llama_decode``: so a child goes first.

    python -m edge_llama.backends.health
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError
from edge_llama.formats import F32, FORMATS, Format
from edge_llama.gguf import encode_header, f32, string, u32

_WIDTH, _VOCABULARY = 256, 512
_Q4_0, _Q8_0 = FORMATS["q4_0"], FORMATS["q8_0"]
_TENSORS: dict[str, tuple[tuple[int, ...], Format]] = {
    "token_embd.weight": ((_VOCABULARY, _WIDTH), _Q8_0),
    "output_norm.weight": ((_WIDTH,), F32),
    "output.weight": ((_VOCABULARY, _WIDTH), _Q8_0),
    "blk.0.attn_norm.weight": ((_WIDTH,), F32),
    "blk.0.ffn_norm.weight": ((_WIDTH,), F32),
    **{f"blk.0.attn_{name}.weight": ((_WIDTH, _WIDTH), _Q4_0) for name in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{name}.weight": ((_WIDTH, _WIDTH), _Q8_0) for name in ("gate", "up", "down")},
}


def check() -> None:
    """Decode in a child process; EngineError with what to do if it dies or fails."""
    command = [sys.executable, "-m", "edge_llama.backends.health"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this interpreter, this module
    if child.returncode:
        how = f"died of signal {-child.returncode}" if child.returncode < 0 else f"ended with {child.returncode}"
        lines = child.stderr.strip().splitlines()
        raise EngineError(
            f"llama.cpp does not work on this processor: a test decode {how}{': ' + lines[-1] if lines else ''}",
            remedy="build llama-cpp-python again on this machine; on x86-64 with CFLAGS and CXXFLAGS set to "
            "'-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'",
        )


def decode() -> None:
    """Write a one-layer model with random weights, and decode a batch and a token with it, in this process."""
    import ctypes  # noqa: PLC0415

    import llama_cpp  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(_tiny_model())
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 256
        context = llama_cpp.llama_init_from_model(model, params)
        for count in (64, 1):
            tokens = (ctypes.c_int32 * count)(*range(count))
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
                raise EngineError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(_VOCABULARY,))
        if not np.isfinite(logits).all() or not logits.any():
            raise EngineError("llama_decode gave no sound logits")


def _tiny_model() -> bytes:
    fields = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "llama.context_length": u32(256),
        "llama.embedding_length": u32(_WIDTH),
        "llama.feed_forward_length": u32(_WIDTH),
        "llama.attention.head_count": u32(4),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(_VOCABULARY),
        "tokenizer.ggml.model": string("none"),
    }
    random = np.random.default_rng(0)
    header, _ = encode_header(fields, [(name, shape, format_) for name, (shape, format_) in _TENSORS.items()])
    return header + b"".join(_random_data(random, shape, format_).tobytes() for shape, format_ in _TENSORS.values())


def _random_data(random: np.random.Generator, shape: tuple[int, ...], format_: Format) -> NDArray[np.uint8]:
    if format_ is F32:
        return np.ones(shape, np.float32).view(np.uint8)
    blocks = random.integers(0, 256, (int(np.prod(shape)) // format_.block_size, format_.block_bytes), np.uint8)
    blocks[:, :2] = np.array([0.005], np.float16).view(np.uint8)  # both formats begin with the block's scale
    return blocks


if __name__ == "__main__":
    decode()
