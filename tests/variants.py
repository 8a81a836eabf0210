"""Checkpoints that differ from the plain families: rotary scaling, biases, infill tokens, 70B's proportions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

CODE_LLAMA_TOKENS = {32007: "▁<PRE>", 32008: "▁<SUF>", 32009: "▁<MID>", 32010: "▁<EOT>"}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes, ensure_ascii=False), "utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, NDArray[np.float32]]], object]) -> None:
    """Change the tensors of an f32 checkpoint in one file."""
    tensors = {name: np.asarray(tensor, np.float32) for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    checkpoints.write_safetensors(folder / "model.safetensors", tensors, "F32")


def widened(folder: Path, rows: int) -> Path:
    """The same f32 checkpoint with ``rows`` more in its embedding and head than its vocabulary has tokens."""

    def widen(tensors: dict[str, NDArray[np.float32]]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = np.concatenate([tensors[name], tensors[name][:rows]])

    edit_tensors(folder, widen)
    n_vocab = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    edit_json(folder / "config.json", vocab_size=n_vocab + rows)
    return folder


_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_FINE_TUNED = {"<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "[TURN_END]": True}


def fine_tuned(folder: Path) -> Path:
    """A Llama 2 as trainers leave it.

    Tokens are added in tokenizer.json alone, beside the base's tokenizer.model; tokenizer_config.json has the base's
    template and end, chat_template.jinja and special_tokens_map.json the present ones; config.json alone has all ends.
    """
    shape = checkpoints.Shape(hidden=32, ffn=64, layers=1, heads=2, kv_heads=2)
    checkpoints.llama2(folder, shape=shape, seed=8)
    n_vocab = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    widened(folder, len(_FINE_TUNED))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": n_vocab + at, "content": text, "special": special, **flags}
        for at, (text, special) in enumerate(_FINE_TUNED.items())
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, "utf-8")
    edit_json(folder / "tokenizer_config.json", chat_template="STALE", eos_token="</s>")
    checkpoints.write_json(folder / "special_tokens_map.json", eos_token="<|im_end|>")
    edit_json(folder / "config.json", eos_token_id=[2, n_vocab + 1, n_vocab + 3])
    (folder / "generation_config.json").unlink()
    return folder


def linear(folder: Path) -> Path:
    checkpoints.llama2(folder, seed=5)
    edit_json(folder / "config.json", rope_scaling={"type": "linear", "factor": 4.0})
    return folder


def yarn(folder: Path) -> Path:
    """A Llama 2 stretched by YaRN."""
    checkpoints.llama2(folder)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0}
    edit_json(folder / "config.json", rope_scaling=scaling)
    return folder


def biased(folder: Path) -> Path:
    """Biases in every layer, as attention_bias and mlp_bias say."""
    checkpoints.llama3(folder, dtype="F32", seed=6)
    rng = np.random.default_rng(6)

    def add(tensors: dict[str, NDArray[np.float32]]) -> None:
        for name in [name for name in tensors if "_proj" in name]:
            bias = rng.standard_normal(tensors[name].shape[0]) * 0.1
            tensors[name.replace(".weight", ".bias")] = bias.astype(np.float32)

    edit_tensors(folder, add)
    edit_json(folder / "config.json", attention_bias=True, mlp_bias=True)
    return folder


def code_llama(folder: Path) -> Path:
    """32,016 tokens, four of them for infilling."""
    checkpoints.llama2(folder, seed=7, shape=checkpoints.Shape(hidden=32, ffn=64, layers=2, heads=4, kv_heads=4))
    rng = np.random.default_rng(7)

    def pad(tensors: dict[str, NDArray[np.float32]]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            more = rng.standard_normal((32016 - len(tensors[name]), 32)).astype(np.float32)
            tensors[name] = np.concatenate([tensors[name], more])

    edit_tensors(folder, pad)
    edit_json(folder / "config.json", vocab_size=32016, rope_theta=1000000.0)
    added = {str(index): {"content": text, "special": True} for index, text in CODE_LLAMA_TOKENS.items()}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=added)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    flags = tokenizer["added_tokens"][0]
    entries = [flags | {"id": index, "content": text} for index, text in CODE_LLAMA_TOKENS.items()]
    edit_json(folder / "tokenizer.json", added_tokens=tokenizer["added_tokens"] + entries)
    return folder


def like_70b(folder: Path) -> Path:
    """Llama 2 70B's 80 layers, 64 heads and 8 KV heads, four numbers to a head."""
    shape = checkpoints.Shape(hidden=64, ffn=64, layers=80, heads=64, kv_heads=8, head_dim=4)
    return checkpoints.llama2(folder, shape=shape)


def without_model_file(folder: Path) -> Path:
    """A sentencepiece vocabulary that comes as tokenizer.json alone."""
    checkpoints.llama2(folder, seed=8)
    (folder / "tokenizer.model").unlink()
    return folder


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "Llama 2": checkpoints.llama2,
    "Llama 2 as tokenizer.json": without_model_file,
    "Llama 2, linear scaling": linear,
    "Llama 2 70B": like_70b,
    "CodeLlama": code_llama,
    "Llama 3.2": lambda folder: checkpoints.llama3(folder, dtype="F32", seed=1),
    "Llama 3.1, untied, padded": lambda folder: checkpoints.llama3(folder, dtype="F32", tied=False, padding=24, seed=2),
    "Llama 3, no scaling": lambda folder: checkpoints.llama3(folder, dtype="F32", rope_scaling=False, seed=3),
    "Llama 3.2, head_dim 64": lambda folder: checkpoints.llama3(
        folder, dtype="F32", shape=checkpoints.Shape(head_dim=64), seed=4
    ),
    "biases": biased,
    "SmolLM": checkpoints.smollm,
}
"""Makers of f32 checkpoints by name."""
