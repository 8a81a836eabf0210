"""Small, realistic Hugging Face checkpoints of the Llama family, made in seconds, for tests and benchmarks.

Weights are random but scaled so that logits spread over a few units; tokenizers are trained on a little text and have
the exact structure of the published ones. No torch: transformers is the tests' independent reference.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from vocabularies import (
    CHATML_TEMPLATE,
    LLAMA2_TEMPLATE,
    LLAMA3_TEMPLATE,
    llama3_tokenizer,
    sentencepiece_as_json,
    sentencepiece_model,
    smollm_tokenizer,
)

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama. ``head_dim`` None: hidden // heads."""

    hidden: int = 128
    ffn: int = 352
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None

    @property
    def head(self) -> int:
        return self.head_dim or self.hidden // self.heads


def write_sentencepiece(folder: Path, model: bytes, template: str, *, legacy: bool) -> None:
    """A sentencepiece tokenizer's files, as the Llama 2 family has them."""
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece_as_json(model)), "utf-8")
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
        legacy=legacy,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def llama2(
    folder: Path,
    *,
    shape: Shape = Shape(kv_heads=4),
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    old_spelling: bool = True,
) -> Path:
    """Llama 2: sentencepiece with byte fallback, untied head."""
    model = sentencepiece_model()
    n_vocab = len(SentencePieceProcessor(model_proto=model))
    folder.mkdir(parents=True)
    write_sentencepiece(folder, model, LLAMA2_TEMPLATE, legacy=False)
    config = {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    rope = (
        {"rope_scaling": None} if old_spelling else {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    )
    _write_config(folder, shape, n_vocab, dtype, config | rope | {"tie_word_embeddings": False}, old_spelling)
    write_json(folder / "generation_config.json", temperature=0.6, top_p=0.9, bos_token_id=1, eos_token_id=2)
    write_weights(folder, weights(shape, n_vocab, tied=False, seed=seed), dtype, shards)
    return folder


def llama3(
    folder: Path,
    *,
    shape: Shape = Shape(),
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    rope_scaling: bool = True,
    tied: bool = True,
    old_spelling: bool = False,
    template_file: bool = False,
    padding: int = 0,
) -> Path:
    """Llama 3 to 3.3: byte-level BPE, llama3 rope scaling. ``padding`` adds embedding rows beyond the vocabulary."""
    tokenizer = llama3_tokenizer()
    n_vocab = tokenizer.get_vocab_size() + padding
    bos, eot = tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id("<|eot_id|>")
    end, eom = tokenizer.token_to_id("<|end_of_text|>"), tokenizer.token_to_id("<|eom_id|>")
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
    }
    if template_file:
        (folder / "chat_template.jinja").write_text(LLAMA3_TEMPLATE, "utf-8")
    else:
        settings["chat_template"] = LLAMA3_TEMPLATE
    write_json(folder / "tokenizer_config.json", **settings, clean_up_tokenization_spaces=False)
    config: dict[str, Any] = {
        "bos_token_id": bos,
        "eos_token_id": [end, eom, eot],
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
    }
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    if old_spelling:
        config |= {"rope_theta": 500000.0, "rope_scaling": scaling if rope_scaling else None}
    else:
        config["rope_parameters"] = (scaling if rope_scaling else {"rope_type": "default"}) | {"rope_theta": 500000.0}
    _write_config(folder, shape, n_vocab, dtype, config, old_spelling)
    write_json(
        folder / "generation_config.json", temperature=0.6, top_p=0.9, bos_token_id=bos, eos_token_id=[end, eom, eot]
    )
    write_weights(folder, weights(shape, n_vocab, tied=tied, seed=seed), dtype, shards)
    return folder


def smollm(
    folder: Path,
    *,
    shape: Shape = Shape(),
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    text: tuple[str, ...] = (),
) -> Path:
    """SmolLM2: byte-level BPE that splits digits, ChatML, tied. ``text``: what its tokenizer is trained on."""
    tokenizer = smollm_tokenizer(text)
    n_vocab = tokenizer.get_vocab_size()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML_TEMPLATE,
    )
    config = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
    _write_config(folder, shape, n_vocab, dtype, config, old_spelling=True)
    write_weights(folder, weights(shape, n_vocab, tied=True, seed=seed), dtype, shards)
    return folder


def write_json(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")


def _write_config(
    folder: Path, shape: Shape, n_vocab: int, dtype: str, more: dict[str, Any], old_spelling: bool
) -> None:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": n_vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "attention_bias": False,
        "torch_dtype" if old_spelling else "dtype": DTYPES[dtype],
    }
    if shape.kv_heads != shape.heads or not old_spelling:
        config["num_key_value_heads"] = shape.kv_heads
    if not old_spelling or shape.head_dim:
        config["head_dim"] = shape.head
    write_json(folder / "config.json", **config | more)


def weights(shape: Shape, n_vocab: int, *, tied: bool, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights under Hugging Face's names, float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(shape.hidden)).astype(np.float32)

    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    # Logits of a few units, so that greedy choices are no ties; a tied embedding serves both ends.
    tensors = {"model.embed_tokens.weight": matrix(n_vocab, shape.hidden, 3.0), "model.norm.weight": norm()}
    if not tied:
        tensors["lm_head.weight"] = matrix(n_vocab, shape.hidden, 3.0)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": matrix(q, shape.hidden, 2.0),
            prefix + "self_attn.k_proj.weight": matrix(kv, shape.hidden, 2.0),
            prefix + "self_attn.v_proj.weight": matrix(kv, shape.hidden),
            prefix + "self_attn.o_proj.weight": matrix(shape.hidden, q),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "mlp.gate_proj.weight": matrix(shape.ffn, shape.hidden),
            prefix + "mlp.up_proj.weight": matrix(shape.ffn, shape.hidden),
            prefix + "mlp.down_proj.weight": matrix(shape.hidden, shape.ffn),
        }
    return tensors


def write_weights(folder: Path, tensors: dict[str, NDArray[np.float32]], dtype: str, shards: int) -> None:
    """One safetensors file, or ``shards`` of them with their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[shard::shards]}
        weight_map |= dict.fromkeys(part, name)
        write_safetensors(folder / name, part, dtype)
    write_json(folder / "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """A safetensors file with every tensor in ``dtype`` (F32, F16 or BF16)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = _stored(tensor, dtype)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _stored(tensor: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "F16":
        return tensor.astype(np.float16).tobytes()
    if dtype == "F32":
        return tensor.tobytes()
    bits = tensor.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # to nearest, ties to even
