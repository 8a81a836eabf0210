"""Checkpoints of which llama.cpp's converter makes a file that tokenizes otherwise: what differs in ours, and why."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import checkpoints
from tokenizers import AddedToken, Tokenizer
from variants import edit_json, fine_tuned, without_model_file
from vocabularies import user_defined_model


def pieces_of_the_user(folder: Path) -> Path:
    """Turn markers within tokenizer.model, as Yi and Gemma have them."""
    checkpoints.llama2(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(user_defined_model())
    edit_json(folder / "tokenizer_config.json", legacy=True)
    return folder


def deepseek_r1(folder: Path) -> Path:
    """Llama 3 with tokens that look like control tokens and are none, and with U+2581 in them."""
    checkpoints.llama3(folder, padding=8)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    texts = ("<｜tool▁calls▁begin｜>", "<|tool|>", "<tool▁end>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    tokenizer.save(str(path))
    return folder


def saved_by_transformers_5(folder: Path) -> Path:
    """Llama 2 as tokenizer.json alone: a space before the first text, none after a control token."""
    without_model_file(folder)
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    edit_json(folder / "tokenizer.json", **content | {"normalizer": None, "pre_tokenizer": step})
    return folder


PREFIX = "tokenizer.ggml."
DIFFERENCES: dict[str, tuple[str, Callable[[Path], Path], Mapping[str, str]]] = {
    # name: (llama.cpp's name of the tokenizer if it must be told, maker, key: why)
    "Llama 2, pieces of the user": (
        "",
        pieces_of_the_user,
        {
            PREFIX + "token_type": "theirs are plain words, which text never forms whole",
            PREFIX + "unknown_token_id": "theirs looks for it among added tokens alone",
        },
    ),
    "Llama 3, tokens of DeepSeek-R1": (
        "llama-bpe",
        deepseek_r1,
        {
            PREFIX + "token_type": "theirs are control tokens by their looks, which an answer doesn't show",
            PREFIX + "tokens": "U+2581 becomes a space in theirs, though no byte-level vocabulary has it for one",
        },
    ),
    "Llama 2, saved by transformers 5": (
        "",
        saved_by_transformers_5,
        {
            PREFIX + "scores": "theirs are all -1000: merges without an order",
            PREFIX + "token_type": "their unknown token is a control token",
            PREFIX + "add_space_prefix": "theirs puts a space after every control token",
        },
    ),
    "Llama 2, fine-tuned": (
        "",
        fine_tuned,
        {
            "tokenizer.chat_template": "chat_template.jinja beats tokenizer_config.json in transformers",
            PREFIX + "eos_token_id": "special_tokens_map.json beats tokenizer_config.json in transformers",
            **dict.fromkeys(
                (PREFIX + "scores", PREFIX + "token_type", PREFIX + "tokens"),
                "theirs lacks what tokenizer.json alone adds beside a tokenizer.model",
            ),
        },
    ),
}
