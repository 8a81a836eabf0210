"""What onnxruntime-genai reads beside a text graph: genai_config.json. Its tokenizer's files are Hugging Face's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.architectures.hyperparameters import Hyperparameters
from converters.metadata.vocabulary import TokenType, Vocabulary
from edge_llama.files.onnx_static import COS, EMBEDS, MASK, SIN, handed_on

_SEARCH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")
_PAD = re.compile(r"<\|?(?:finetune_right_)?pad(?:_id)?\|?>|\[PAD\]", re.IGNORECASE)
_RESERVED = re.compile(r"<\|?(?:\w+_)?(?:reserved|unused)_?\w*\|?>", re.IGNORECASE)
"""What tokens are called that no prompt has."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some layers of a tower, and their graphs' files: for a window of a prompt, and for a token."""

    layers: range
    prompt: str
    token: str


def config(
    kind: str, hp: Hyperparameters, ids: Mapping[str, Any], generation: Mapping[str, Any], *, shares_cache: bool
) -> dict[str, Any]:
    """genai_config.json of a model that genai calls ``kind``.

    ``ids`` are those of special tokens, ``generation`` is generation_config.json's content.
    """
    return {
        "model": {
            "type": kind,
            "vocab_size": hp.n_vocab,
            "context_length": hp.n_ctx,
            **ids,
            "decoder": {
                "filename": "model.onnx",
                "head_size": hp.head_dim,
                "hidden_size": hp.n_embd,
                "num_attention_heads": hp.n_head,
                "num_hidden_layers": hp.n_layer,
                "num_key_value_heads": hp.n_head_kv,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": _search(generation, hp.n_ctx, shares_cache=shares_cache),
    }


def pipeline(
    hp: Hyperparameters,
    ids: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    window: int,
    n_ctx: int,
    kv_bits: int,
    inputs: str,
    parts: Sequence[Part],
) -> dict[str, Any]:
    """genai_config.json of graphs with fixed shapes: ``inputs`` is the file of the first stage, ``parts`` the others.

    Its windows are right-aligned, its caches move to the left by what is new. ``pad_value`` is a cache's zero.
    """
    shared = [EMBEDS, MASK, COS, SIN]
    ids_of = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    session = {"log_id": "onnxruntime-genai", "provider_options": []}
    stages: dict[str, dict[str, Any]] = {
        "inputs": {"filename": inputs, "inputs": list(ids_of), "outputs": shared, "session_options": session}
    }
    for kind, other in (("prompt", "token_gen"), ("token", "prompt")):
        for part in parts:
            file = part.prompt if kind == "prompt" else part.token
            caches = [f"{what}_{layer}" for layer in part.layers for what in ("keys", "values")]
            ends = part.layers.stop == hp.n_layer
            stages[file.removesuffix(".onnx")] = {
                "filename": file,
                "inputs": [handed_on(part.layers.start), *shared[1:], *(f"past_{name}" for name in caches)],
                "outputs": [
                    "logits" if ends else handed_on(part.layers.stop),
                    *(f"present_{name}" for name in caches),
                ],
                f"run_on_{other}": False,
                "session_options": session,
            }
    return {
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": hp.n_vocab,
            "context_length": n_ctx,
            **ids,
            "decoder": {
                "head_size": hp.head_dim,
                "hidden_size": hp.n_embd,
                "num_attention_heads": hp.n_head,
                "num_hidden_layers": hp.n_layer,
                "num_key_value_heads": hp.n_head_kv,
                "session_options": session,
                "sliding_window": {
                    "window_size": window,
                    "pad_value": 1 << (kv_bits - 1),
                    "alignment": "right",
                    "slide_key_value_cache": True,
                    "slide_inputs": True,
                },
                "inputs": {**ids_of, "past_key_names": "past_keys_%d", "past_value_names": "past_values_%d"},
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present_keys_%d",
                    "present_value_names": "present_values_%d",
                },
                "pipeline": [stages],
            },
        },
        "search": _search(generation, n_ctx, shares_cache=False),
    }


def padding(vocabulary: Vocabulary, ends: Sequence[int]) -> int | None:
    """The token for padding in a pipeline, which genai skips wherever a prompt has it: so one that no prompt has.

    A pad, an unused or a reserved token; else one of ``ends``, which end an answer, that no chat template writes; else
    the first of them. None if there is none.
    """
    template, tokens, special = "".join(vocabulary.chat_templates.values()), vocabulary.tokens, vocabulary.special
    found = [index for index in _nobodys(vocabulary) if index not in (special.get("bos"), *ends)]
    found += [index for index in ends if "eos_token" not in template or index != special.get("eos")]
    unwritten = (index for index in found if index < len(tokens) and tokens[index] not in template)
    return next(unwritten, next(iter(ends), None))


def _nobodys(vocabulary: Vocabulary) -> Iterator[int]:
    """Tokens that stand for nothing which is said, the likeliest first."""
    numbered = list(enumerate(vocabulary.tokens))
    if "pad" in vocabulary.special:
        yield vocabulary.special["pad"]
    yield from (index for index, text in numbered if _PAD.fullmatch(text))
    yield from (index for index, kind in enumerate(vocabulary.types) if kind == TokenType.UNUSED)
    yield from (index for index, text in numbered if _RESERVED.fullmatch(text))
    if vocabulary.unknown is not None:
        yield vocabulary.unknown


def _search(generation: Mapping[str, Any], n_ctx: int, *, shares_cache: bool) -> dict[str, Any]:
    return {
        **{key: generation[key] for key in _SEARCH if generation.get(key) is not None},
        "max_length": n_ctx,
        "past_present_share_buffer": shares_cache,
    }
