"""The checkpoints of ``checkpoints.py`` as Meta would publish them: torch files, params.json, tokenizer.model."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Shape, weights
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from vocabularies import llama3_tokenizer, sentencepiece_model

SPECIAL = 256
_LLAMA2, _LLAMA3 = Shape(kv_heads=4), Shape()
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LAYER = {
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "post_attention_layernorm": ("ffn_norm", None),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
}


def llama2(folder: Path, *, shape: Shape = _LLAMA2, dtype: str = "F32", shards: int = 1, seed: int = 0) -> Path:
    """Llama 2, the embedding cut by columns."""
    model = sentencepiece_model()
    n_vocab = len(SentencePieceProcessor(model_proto=model))
    tensors = meta_tensors(weights(shape, n_vocab, tied=False, seed=seed), shape)
    params = {"norm_eps": 1e-5, "vocab_size": -1}
    params |= {"n_kv_heads": shape.kv_heads} if shape.kv_heads != shape.heads else {}
    extra = {"rope.freqs": torch.ones(shape.head // 2, dtype=torch.complex64)}
    return write(folder, tensors, shape, params, model, dtype=dtype, shards=shards, embedding_axis=1, extra=extra)


def llama3(
    folder: Path,
    *,
    shape: Shape = _LLAMA3,
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    scaled: bool = True,
    tied: bool = True,
    ranks: bytes | None = None,
) -> Path:
    """Llama 3 to 3.3, the embedding cut by rows; ``tied``: Llama 3.2, which holds it twice."""
    ranks = ranks or small_ranks()
    n_vocab = len(ranks.splitlines()) + SPECIAL
    tensors = meta_tensors(weights(shape, n_vocab, tied=tied, seed=seed), shape)
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"].copy())
    params = {"norm_eps": 1e-5, "vocab_size": n_vocab, "rope_theta": 500000.0, "n_kv_heads": shape.kv_heads}
    params |= {"use_scaled_rope": True} if scaled else {}
    return write(folder, tensors, shape, params, ranks, dtype=dtype, shards=shards, embedding_axis=0)


INT4_SHAPE = Shape(ffn=512)
"""Its feed-forward width is a power of two, which a Hadamard transform needs."""


def llama3_int4(
    folder: Path,
    quantization: dict[str, Any],
    lora: dict[str, Any] | None = None,
    *,
    group: int = 32,
    edit: Callable[[dict[str, torch.Tensor]], object] = lambda _tensors: None,
) -> Path:
    """As Meta publishes Llama 3.2 in int4: integers with scales beside them, and adapters where ``lora`` says so."""
    ranks = small_ranks()
    n_vocab = len(ranks.splitlines()) + SPECIAL
    rng = np.random.default_rng(5)
    tensors: dict[str, torch.Tensor] = {}
    for name, array in meta_tensors(weights(INT4_SHAPE, n_vocab, tied=False, seed=3), INT4_SHAPE).items():
        stem = name.removesuffix(".weight")
        if array.ndim == 1:
            tensors[name] = torch.from_numpy(array).to(torch.bfloat16)
            continue
        in_layer = name.startswith("layers.")
        grouped = array.reshape(len(array), -1, group if in_layer else array.shape[1])
        scales = np.abs(grouped).max(axis=2) / (7 if in_layer else 127)
        tensors[name] = torch.from_numpy(np.rint(grouped / scales[..., None]).astype(np.int8).reshape(array.shape))
        tensors[f"{stem}.scales"] = torch.from_numpy(scales)
        for side, shape in (("A", (lora["rank"], array.shape[1])), ("B", (len(array), lora["rank"]))) if lora else ():
            if in_layer:
                matrix = torch.from_numpy(rng.normal(0, 0.1, shape)).to(torch.bfloat16)
                tensors[f"{stem}.adaptor.{side}.weight"] = matrix
    edit(tensors)
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "consolidated.00.pth")
    (folder / "tokenizer.model").write_bytes(ranks)
    sizes = {"dim": INT4_SHAPE.hidden, "n_layers": INT4_SHAPE.layers, "n_heads": INT4_SHAPE.heads, "multiple_of": 512}
    params = {"n_kv_heads": INT4_SHAPE.kv_heads, "vocab_size": n_vocab, "norm_eps": 1e-5, "rope_theta": 500000.0}
    params |= {"use_scaled_rope": True, "quantization_args": quantization} | ({"lora_args": lora} if lora else {})
    (folder / "params.json").write_text(json.dumps(sizes | params))
    return folder


def small_ranks(tokenizer: Tokenizer | None = None) -> bytes:
    """The trained byte-level BPE of ``vocabularies.py``, Llama 3's unless another is given, in tiktoken's form."""
    vocab = json.loads((tokenizer or llama3_tokenizer()).to_str())["model"]["vocab"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {
        chr(256 + index): byte for index, byte in enumerate(byte for byte in range(256) if byte not in printable)
    }
    tokens = (bytes(letters[letter] for letter in text) for text in sorted(vocab, key=vocab.__getitem__))
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def edited_ranks(edit: Callable[[list[bytes]], object]) -> Callable[[Path], object]:
    """What puts a rank file with edited lines into a folder."""

    def rewrite(folder: Path) -> None:
        lines = small_ranks().splitlines()
        edit(lines)
        (folder / "tokenizer.model").write_bytes(b"\n".join(lines))

    return rewrite


def meta_tensors(tensors: dict[str, NDArray[np.float32]], shape: Shape) -> dict[str, NDArray[np.float32]]:
    """Under Meta's names; rows of Q and K in pairs instead of halves."""
    outside = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    found = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if stem in outside:
            found[outside[stem] + ".weight"] = tensor
            continue
        _, _, layer, rest = stem.split(".", 3)
        is_rotary = rest in ("self_attn.q_proj", "self_attn.k_proj")
        found[f"layers.{layer}.{_LAYER[rest][0]}.weight"] = _in_pairs(tensor, shape.head) if is_rotary else tensor
    return found


def _in_pairs(tensor: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    halves = tensor.reshape(-1, 2, head_dim // 2, tensor.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)


def write(
    folder: Path,
    tensors: dict[str, NDArray[np.float32]],
    shape: Shape,
    params: dict[str, Any],
    tokenizer: bytes,
    *,
    dtype: str,
    shards: int,
    embedding_axis: int,
    extra: dict[str, torch.Tensor] | None = None,
) -> Path:
    """The folder, with each tensor cut into ``shards`` as Meta's model code cuts it."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    sizes = {"dim": shape.hidden, "n_layers": shape.layers, "n_heads": shape.heads, "multiple_of": 32}
    (folder / "params.json").write_text(json.dumps(sizes | params))
    axes = dict(_LAYER.values()) | {
        "tok_embeddings": embedding_axis,
        "output": 0,
        "norm": None,
    }
    for shard in range(shards):
        part = {}
        for name, array in tensors.items():
            axis = axes[name.removesuffix(".weight").split(".", 2)[-1] if name.startswith("layers.") else name[:-7]]
            copies = max(shards // shape.kv_heads, 1) if name.endswith(("wk.weight", "wv.weight")) else 1
            whole = torch.from_numpy(array).to(_DTYPES[dtype])
            cut = whole if axis is None else whole.chunk(shards // copies, axis)[shard // copies]
            part[name] = cut.clone(memory_format=torch.contiguous_format)
        torch.save(part | (extra or {}), folder / f"consolidated.{shard:02}.pth")
    return folder
