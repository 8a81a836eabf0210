"""Tokenizers of families other than Llama: each with the structure of the published one, trained on a little text."""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from vocabularies import LLAMA3_REGEX, corpus, sentencepiece_as_json

QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>")
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Added, but no control tokens: an answer may show them."""
SMOLLM3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
_LINES = ("\n", "\n\n", "\n\n\n")


@cache
def qwen() -> Tokenizer:
    """Of Qwen 2 to 3: byte-level BPE over text in NFC, a digit at a time; added tokens follow the vocabulary."""
    tokenizer = _byte_level(QWEN2_REGEX, whole_words_first=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    _add(tokenizer, QWEN_SPECIAL, is_special=True)
    _add(tokenizer, QWEN_PLAIN, is_special=False)
    return tokenizer


@cache
def smollm3() -> Tokenizer:
    """Llama 3's, with other control tokens, none of which begins a text."""
    tokenizer = _byte_level(LLAMA3_REGEX, whole_words_first=True)
    template = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    _add(tokenizer, SMOLLM3_SPECIAL[:4], is_special=True)
    _add(tokenizer, SMOLLM3_SPECIAL[4:], is_special=False)
    return tokenizer


def _byte_level(regex: str, *, whole_words_first: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words_first))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _add(tokenizer: Tokenizer, texts: Sequence[str], *, is_special: bool) -> None:
    tokenizer.add_tokens([AddedToken(text, special=is_special, normalized=False) for text in texts])


@cache
def gemma_model() -> bytes:
    """A sentencepiece BPE model as Gemma's: no space before a text, control tokens and line ends as pieces of users."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=[*GEMMA_SPECIAL[4:], *_LINES],
        minloglevel=2,
    )
    return out.getvalue()


def gemma_as_json(model: bytes) -> dict[str, Any]:
    """The tokenizer.json that is published beside a Gemma's tokenizer.model."""
    pieces = SentencePieceProcessor(model_proto=model)
    content = sentencepiece_as_json(model)
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    content["added_tokens"] = [
        {"id": pieces.piece_to_id(text), "content": text, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": text in GEMMA_SPECIAL}
        for text in (*GEMMA_SPECIAL, *_LINES)
    ]
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [pieces.bos_id()], "tokens": ["<bos>"]}},
    }
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return content


CHATML_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
