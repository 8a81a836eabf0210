"""What onnxruntime-genai reads beside a text graph: genai_config.json. Its tokenizer's files are Hugging Face's."""

from collections.abc import Mapping
from typing import Any

from converters.architectures.hyperparameters import Hyperparameters

_SEARCH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")


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
        "search": {
            **{key: generation[key] for key in _SEARCH if generation.get(key) is not None},
            "max_length": hp.n_ctx,
            "past_present_share_buffer": shares_cache,
        },
    }
