"""Tokenizers with the exact structure of the published ones, trained on a little text, and their chat templates."""

import argparse
import io
import json
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# OpenAI's o200k, letter for letter as Meta's Llama 4 tokenizer has it.
LLAMA4_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCES = """\
The quick brown fox jumps over the lazy dog. Llamas live in the Andes; they're 1.7 m tall and weigh 130 kg.
Über den Wolken muss die Freiheit wohl grenzenlos sein. Où est la bibliothèque? ¿Dónde está la estación?
Съешь же ещё этих мягких французских булок. 東京は日本の首都です。我想在苹果工作。 مرحبا بالعالم שלום עולם สวัสดีชาวโลก
def main() -> None:\n    print("hello", 12345, 3.14159)\n"""


_PICTURES = """\
system user assistant ipython Which digit is this? Which digits are these? left 3, right 5 top 7, bottom 2
Which is on the left? And on the right? Which is at the top? And at the bottom? first 4, second 8
Hello! Hi! Show me a picture with digits. Who are you? I read digits in pictures.
Thank you! You are welcome. Goodbye!\n"""


@cache
def corpus() -> tuple[str, ...]:
    """Lines to train on: sources of the standard library, and a few languages."""
    sources = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (argparse, textwrap, json))
    return tuple((sources + _SENTENCES * 40).splitlines())


@cache
def sentencepiece_model() -> bytes:
    """A sentencepiece BPE model with Llama 2's settings."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return out.getvalue()


@cache
def unigram_model() -> bytes:
    """A sentencepiece unigram model as XLM-RoBERTa has one, normalized by NFKC."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        model_type="unigram",
        vocab_size=600,
        character_coverage=0.9995,
        minloglevel=2,
    )
    return out.getvalue()


@cache
def user_defined_model() -> bytes:
    """A small model that holds turn markers as pieces of the user."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()[::3]),
        model_writer=out,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols="<user>,<bot>,[SEP]",
        minloglevel=2,
    )
    return out.getvalue()


def sentencepiece_as_json(model: bytes) -> dict[str, Any]:
    """The tokenizer.json that transformers derives from a Llama 2 tokenizer.model."""
    pieces = SentencePieceProcessor(model_proto=model)
    vocab = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    scores = {piece: pieces.get_score(index) for piece, index in vocab.items()}
    merges = [
        (scores[piece], piece[:at], piece[at:])
        for piece in vocab
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    merges.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
    bos = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for index, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": bos,
            "pair": [*bos, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[left, right] for _, left, right in merges],
        },
    }


def _byte_level(
    pre_tokenizer: Any,
    vocab_size: int,
    special: Sequence[str],
    *,
    special_first: bool,
    text: Sequence[str] | None = None,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=not special_first))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(
        text or corpus(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special) if special_first else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


@cache
def llama3_tokenizer() -> Tokenizer:
    """A byte-level BPE with Llama 3's splitting regex and special tokens, which follow the vocabulary."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    return _tiktoken(LLAMA3_REGEX, 1000, special)


@cache
def llama4_tokenizer() -> Tokenizer:
    """A byte-level BPE with Llama 4's splitting regex and its 2,048 special tokens, which follow the vocabulary."""
    from llama_models.llama4.tokenizer import BASIC_SPECIAL_TOKENS, LLAMA4_SPECIAL_TOKENS  # noqa: PLC0415 - slow

    named = [*BASIC_SPECIAL_TOKENS, *LLAMA4_SPECIAL_TOKENS]
    reserved = [f"<|reserved_special_token_{index}|>" for index in range(2048 - len(named))]
    text = [f"{line}\n\n" for line in _PICTURES.splitlines()] * 200
    return _tiktoken(LLAMA4_REGEX, 700, [*named, *reserved], (*corpus(), *text))


def _tiktoken(regex: str, vocab_size: int, special: Sequence[str], text: Sequence[str] | None = None) -> Tokenizer:
    """As transformers converts Meta's tiktoken ranks."""
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer = _byte_level(pre_tokenizer, vocab_size, special, special_first=False, text=text)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


@cache
def smollm_tokenizer(text: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE that splits digits, its special tokens first; trained on these lines, else on the corpus."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    return _byte_level(pre_tokenizers.Sequence([digits, byte_level]), 900, special, special_first=True, text=text)


LLAMA2_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system_message = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate user/assistant') }}
{%- endif -%}
{%- set content = system_message + turn['content'] if loop.first else turn['content'] -%}
{%- if turn['role'] == 'user' -%}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def split_up(folder: Path) -> None:
    """The byte-level tokenizer of a folder as older checkpoints have it: words and merges, nothing added."""
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    (folder / "tokenizer.json").unlink()
