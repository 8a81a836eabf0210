"""Fields of a config.json that are known to be without effect on what a trained text model computes.

A field that is neither in a family's table nor here might change the computation. Such a one is refused by name rather
than ignored, unless its value says "nothing": null, false, 0, or an empty text, list or object.
"""

from collections.abc import Collection, Mapping
from typing import Any

from edge_llama.errors import InputError
from edge_llama.files.json_fields import Fields

_ABOUT = (  # who made it, with what, and where from
    "architectures model_type transformers_version name_or_path name author license license_name license_link "
    "language languages tags description url base_model base_model_name_or_path model_name model_id version "
    "revision commit_hash auto_map custom_pipelines torch_dtype dtype transformers.js_config is_llama_config "
    "unsloth_version unsloth_fixed axolotl_version mlx_version peft_version finetuned_from date created_at "
    "processor_class tokenizer_class tokenizer tokenizer_name text_model_id task task_specific_params "
    "finetuning_task problem_type id2label label2id num_labels classifier_dropout summary_type dataset datasets "
    "training_args trainable training_data sft_config"
)
_TOKENS = (
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id "
    "decoder_start_token_id eot_token_id image_token_id image_token_index boi_token_index eoi_token_index "
    "boi_token_id eoi_token_id bos_token eos_token pad_token unk_token padding_side prefix suffix chat_template "
    "begin_suppress_tokens"
)
_RUNNING = (  # how it is run, and training
    "use_cache cache_implementation attn_implementation experts_implementation use_flash_attn use_flash_attention "
    "use_flash_attention_2 use_flash_attn_2 flash_attention fused_attention use_sdpa use_xformers "
    "use_fused_rms_norm use_fused_swiglu use_fused_cross_entropy use_liger_kernel fuse_cross_entropy use_kernels "
    "compile torchscript tf_legacy_loss use_bfloat16 bf16 fp16 device device_map max_batch_size pretraining_tp "
    "tensor_parallel tp_plan chunk_size_feed_forward gradient_checkpointing use_gradient_checkpointing "
    "initializer_range init_std initializer_factor initializer_cutoff_factor init_method weight_init "
    "attention_dropout hidden_dropout attn_dropout resid_dropout embd_dropout dropout hidden_dropout_prob "
    "attention_probs_dropout_prob resid_pdrop attn_pdrop embd_pdrop dropout_rate output_attentions "
    "output_hidden_states output_scores return_dict return_dict_in_generate output_router_logits "
    "router_aux_loss_coef router_jitter_noise router_z_loss_coef aux_loss_alpha z_loss_coef neftune_noise_alpha "
    "for_llm_compressor loss_type tie_last_hidden_states pruned_heads seq_length max_seq_len max_sequence_length "
    "max_length model_max_length original_max_length train_seq_len is_decoder "
    "keys_to_ignore_at_inference keep_fp32_modules optimizer learning_rate weight_decay seed random_seed"
)
_SAMPLING = (  # GenerationConfig's, which transformers takes out of config.json before a model sees it
    "max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams "
    "num_beam_groups num_return_sequences penalty_alpha dola_layers temperature top_k top_p min_p top_h typical_p "
    "epsilon_cutoff eta_cutoff diversity_penalty repetition_penalty encoder_repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids renormalize_logits "
    "constraints forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
    "suppress_tokens forced_decoder_ids sequence_bias token_healing guidance_scale low_memory watermarking_config "
    "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit num_assistant_tokens generation_config "
    "num_assistant_tokens_schedule assistant_confidence_threshold is_assistant cache_config compile_config "
    "use_mtp disable_compile"
)
WITHOUT_EFFECT = frozenset(f"{_ABOUT} {_TOKENS} {_RUNNING} {_SAMPLING}".split())
_HARMLESS = {  # fields that say what these families do anyhow
    "activation": ("swiglu", "silu", "swish"),  # Falcon 3
    "position_embedding_type": ("rope", "rotary"),
    "norm_type": ("rmsnorm", "rms_norm"),
}
_CHECKED_ELSEWHERE = frozenset({"text_config", "vision_config", "quantization_config", "is_causal"})


def check_unknown(fields: Fields, known: Collection[str]) -> None:
    """CheckpointError for a field that is neither in ``known`` nor known to be without effect, and says something."""
    if fields.content.get("is_causal") is False:
        raise fields.fail("is_causal", "is False", "only text that is read from left to right can be converted")
    for key, value in fields.content.items():
        if key in known or key in WITHOUT_EFFECT or key in _CHECKED_ELSEWHERE or key.startswith("_") or not value:
            continue
        if value in _HARMLESS.get(key, ()):
            continue
        raise unknown(fields, key, value)


def unknown(fields: Fields, key: str, value: Any) -> InputError:
    """The error about a field whose meaning nobody knows here."""
    return fields.fail(
        key,
        f"is {value!r:.100}, and it isn't known what that changes in this family's computation",
        "take it out of config.json if it has no effect",
    )


def check_unknown_within(fields: Fields, known: Collection[str]) -> None:
    """The same of an object within config.json, where nothing is without effect but what ``known`` lists."""
    content: Mapping[str, Any] = fields.content
    for key, value in content.items():
        if key not in known and value:
            raise unknown(fields, key, value)
