"""Small random checkpoints of families other than Llama, made by transformers' own classes; and what it computes.

Each has what is particular to its family: biases of queries, keys and values that matter, norms that are not one, heads
wider than the hidden size tells, more embedding rows than tokens, layers of every kind.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import family_tokenizers as tokenizers
import numpy as np
import torch
from checkpoints import write_json, write_sentencepiece
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from vocabularies import sentencepiece_as_json, sentencepiece_model

_PADDING = 13
"""Embedding rows that no token has, as Qwen's."""
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}


def qwen2(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Qwen2.5: biases of queries, keys and values."""
    return _qwen(folder, Qwen2ForCausalLM, Qwen2Config, dtype, seed, config)


def qwen3(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Qwen3, dense: a norm for each head of queries and keys; heads wider than the hidden size tells."""
    return _qwen(folder, Qwen3ForCausalLM, Qwen3Config, dtype, seed, {"head_dim": 32} | config)


def _qwen(folder: Path, kind: Any, kind_of_config: Any, dtype: str, seed: int, config: dict[str, Any]) -> Path:
    tokenizer = tokenizers.qwen()
    end, begin, turn = (tokenizer.token_to_id(text) for text in tokenizers.QWEN_SPECIAL[:3])
    settings = {
        "vocab_size": tokenizer.get_vocab_size() + _PADDING,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": end,
        "eos_token_id": turn,
        "tie_word_embeddings": True,
    }
    _save(folder, kind(kind_of_config(**_SIZES | settings | config)), dtype, seed)
    _byte_level(
        *(folder, tokenizer, tokenizers.CHATML_TEMPLATE),
        tokenizer_class="Qwen2Tokenizer",
        add_bos_token=False,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    ids = {"bos_token_id": end, "pad_token_id": end, "eos_token_id": [turn, end]}
    assert begin == end + 1
    write_json(folder / "generation_config.json", **ids, **drawn)
    return folder


def smollm3(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """SmolLM3: every fourth layer without RoPE."""
    tokenizer = tokenizers.smollm3()
    turn = tokenizer.token_to_id("<|im_end|>")
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_hidden_layers": 5,
        "max_position_embeddings": 65536,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
        "bos_token_id": tokenizer.token_to_id("<|begin_of_text|>"),
        "eos_token_id": turn,
        "pad_token_id": turn,
    }
    _save(folder, SmolLM3ForCausalLM(SmolLM3Config(**_SIZES | settings | config)), dtype, seed)
    _byte_level(
        *(folder, tokenizer, tokenizers.CHATML_TEMPLATE),
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    write_json(folder / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=turn)
    return folder


def mistral(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Mistral 7B, since its version 0.2: no sliding window."""
    settings = {"sliding_window": None, "max_position_embeddings": 32768, "tie_word_embeddings": False}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    model = MistralForCausalLM(MistralConfig(**_SIZES | _sentencepiece_sizes() | settings | rope | config))
    return _with_sentencepiece(_save(folder, model, dtype, seed))


def mixtral(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Mixtral: two of four experts."""
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 32768}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None}
    model = MixtralForCausalLM(MixtralConfig(**_SIZES | _sentencepiece_sizes() | settings | rope | config))
    return _with_sentencepiece(_save(folder, model, dtype, seed))


def _sentencepiece_sizes() -> dict[str, Any]:
    return {"vocab_size": len(sentencepiece_as_json(sentencepiece_model())["model"]["vocab"])}


def _with_sentencepiece(folder: Path) -> Path:
    write_sentencepiece(folder, sentencepiece_model(), tokenizers.MISTRAL_TEMPLATE, legacy=True)
    write_json(folder / "generation_config.json", bos_token_id=1, eos_token_id=2)
    return folder


def gemma3(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Gemma 3's text models (270M, 1B): seven layers, of which the sixth alone looks further back than 8 positions."""
    return _with_gemma_tokenizer(_save(folder, Gemma3ForCausalLM(_gemma3_text(config)), dtype, seed))


def gemma3_with_vision(folder: Path, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """Gemma 3 from 4B on: a text tower whose global layers stretch positions by eight, and a vision tower."""
    stretched = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    rope = {"rope_parameters": {"full_attention": stretched, "sliding_attention": local}}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    both = Gemma3Config(
        text_config=_gemma3_text(rope | config).to_dict(),
        vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7} | vision,
        mm_tokens_per_image=4,
        boi_token_index=7,
        eoi_token_index=6,
        image_token_index=5,
        tie_word_embeddings=True,
    )
    return _with_gemma_tokenizer(_save(folder, Gemma3ForConditionalGeneration(both), dtype, seed))


def _gemma3_text(config: dict[str, Any]) -> Gemma3TextConfig:
    settings = {
        "vocab_size": len(tokenizers.gemma_as_json(tokenizers.gemma_model())["model"]["vocab"]),
        "num_hidden_layers": 7,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    }
    return Gemma3TextConfig(**_SIZES | settings | config)


def _with_gemma_tokenizer(folder: Path) -> Path:
    model = tokenizers.gemma_model()
    content = tokenizers.gemma_as_json(model)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="GemmaTokenizer",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        added_tokens_decoder={
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in content["added_tokens"]
        },
        chat_template=tokenizers.GEMMA_TEMPLATE,
    )
    turn = content["model"]["vocab"]["<end_of_turn>"]
    write_json(
        folder / "generation_config.json",
        bos_token_id=2,
        eos_token_id=[1, turn],
        pad_token_id=0,
        do_sample=True,
        top_k=64,
        top_p=0.95,
    )
    return folder


FAMILIES: dict[str, Callable[..., Path]] = {
    make.__name__: make for make in (qwen2, qwen3, smollm3, mistral, mixtral, gemma3, gemma3_with_vision)
}


def _byte_level(folder: Path, tokenizer: Tokenizer, template: str, **settings: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        **settings,
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def _save(folder: Path, model: PreTrainedModel, dtype: str, seed: int) -> Path:
    """The model with random weights whose logits spread over a few units, and depend on what was said before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif parameter.dim() == 1:  # norms, around what they are new: one, or nothing; the last makes logits large
                parameter.add_(0.2 * noise + 2 * name.endswith("model.norm.weight"))
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0  # so that attention chooses
                parameter.copy_(noise * gain / parameter.shape[-1] ** 0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def reference(folder: Path) -> Any:
    """transformers' model in float32, attention computed step by step as the papers say."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def prompt_logits(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits after ``ids``, read at once: float32 ``(n_vocab,)``."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()


def answered(model: Any, ids: Sequence[int], count: int) -> tuple[list[int], NDArray[np.float32]]:
    """The likeliest ``count`` tokens after ``ids``, by transformers' own loop and cache, which no end token stops.

    And the logits that each was chosen by: float32 ``(count, n_vocab)``.
    """
    plain = GenerationConfig(
        max_new_tokens=count, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    model.generation_config = plain  # else the publisher's settings fill what ours leave open
    found = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
    return found.sequences[0, len(ids) :].tolist(), torch.cat(found.logits).numpy()
