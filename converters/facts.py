"""Where each fact about a checkpoint stands, and who wins where places disagree: one row a fact.

The order is that in which transformers decides (read in 5.24; ``source`` says where), so that a checkpoint means here
what it means there. Who reads a fact asks :func:`find`; who wants to know the rules reads the table, or docs/facts.md,
which a test holds equal to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import eq
from typing import Any

_MOST_SHOWN = 60  # characters of a value: ids and names; templates are not shown


@dataclass(frozen=True, slots=True)
class Fact:
    """``topic``: what it is, and the report's name for it. ``places``: the first that says something decides.

    A place is ``FILE`` or ``FILE: field.field``. ``rule`` adds what the order alone doesn't say, ``source`` names the
    code of transformers that decides so; where that has no say, why it is as it is.
    """

    topic: str
    places: tuple[str, ...]
    rule: str
    source: str

    def of(self, name: str) -> "Fact":
        """The row of one of a group of facts, whose ``*`` is ``name``."""
        places = tuple(place.replace("*", name) for place in self.places)
        return replace(self, topic=self.topic.replace("*", name), places=places)


@dataclass(frozen=True, slots=True)
class Found:
    """A fact's value, the place that said it, and what other places say instead."""

    value: Any
    place: str
    others: Mapping[str, Any]

    @property
    def note(self) -> str:
        """For the report: what was chosen over what; empty where no place disagrees."""
        others = "; ".join(f"{place}{_shown(value)} differs and is not used" for place, value in self.others.items())
        return f"by {self.place}{_shown(self.value)}; {others}" if others else ""


def find(fact: Fact, contents: Mapping[str, Any], same: Callable[[Any, Any], bool] = eq) -> Found | None:
    """What the first of the fact's places says; None if none says anything.

    ``contents``: what the files hold, by their names as the table writes them: JSON values, or what stands for a file
    that is none. A value of null says nothing. ``same`` tells whether two places say the same.
    """
    return decide(fact, {place: value_at(contents, place) for place in fact.places}, same)


def decide(fact: Fact, said: Mapping[str, Any], same: Callable[[Any, Any], bool] = eq) -> Found | None:
    """The same where it is known already what each place says; None: nothing."""
    places = [place for place in fact.places if said.get(place) is not None]
    if not places:
        return None
    value = said[places[0]]
    others = {place: said[place] for place in places[1:] if not same(value, said[place])}
    return Found(value, places[0], others)


def value_at(contents: Mapping[str, Any], place: str) -> Any:
    """What ``contents`` have at a place of the table; None where there is nothing."""
    file, _, field = place.partition(": ")
    value = contents.get(file)
    for key in field.split(".") if field else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def notes(*facts: tuple[Fact, Found | None]) -> dict[str, str]:
    """The report's notes on those facts on which places disagree, by topic."""
    return {fact.topic: found.note for fact, found in facts if found is not None and found.note}


def _shown(value: Any) -> str:
    text = repr(value)
    return f" ({text})" if len(text) <= _MOST_SHOWN and not isinstance(value, Mapping) else ""


TEMPLATE_FILES = "chat_template.jinja, additional_chat_templates/*.jinja"
CHAT_TEMPLATE = Fact(
    "chat template",
    (
        TEMPLATE_FILES,
        "tokenizer_config.json: chat_template",
        "processor_config.json: chat_template",
        "chat_template.json: chat_template",
    ),
    "A file of its own replaces all that tokenizer_config.json has, named templates too. Of named ones `default` is in "
    "use, and `tool_use` where tools are given. The last two places are those of processors, for want of another.",
    "tokenization_utils_base: _from_pretrained, get_chat_template; processing_utils: get_processor_dict",
)
END_TOKENS = Fact(
    "end tokens",
    (
        "generation_config.json: eos_token_id",
        "config.json: eos_token_id",
        "config.json: text_config.eos_token_id",
    ),
    "A number or a list; every one of them ends an answer. A negative id is none. Where config.json decides, the "
    "tokenizer's own ends (eos_token, `<|eot_id|>` and the like) end an answer too.",
    "generation.configuration_utils: from_model_config; generation.utils: adjust_generation_fn",
)
SAMPLING = Fact(
    "sampling",
    ("generation_config.json", "config.json", "config.json: text_config"),
    "temperature, top_k, top_p, min_p, repetition_penalty, do_sample. Where generation_config.json is there, it alone "
    "counts. A top_k of 50.0 is 50.",
    "generation.configuration_utils: from_model_config; generation.utils: adjust_generation_fn",
)
ROLES = Fact(
    "*_token",
    (
        "special_tokens_map.json: *_token",
        "tokenizer_config.json: *_token",
        "the tokenizer's class",
        "config.json: *_token_id",
    ),
    "bos, eos, unk, sep, pad, cls, mask. special_tokens_map.json counts where tokenizer_config.json has no "
    "added_tokens_decoder. Between the last two stands what tokenizer.json's post-processor puts around a text.",
    "tokenization_utils_base: _from_pretrained; the last place is llama.cpp's",
)
ADDS = Fact(
    "add_*_token",
    ("tokenizer.json: post_processor", "tokenizer_config.json: add_*_token"),
    "Whether bos, eos and sep are put around a text. Where tokenizer.json is there, it counts alone. A tokenizer.model "
    "that stands alone adds a BOS, as in llama.cpp and for Meta, though transformers 5 adds none.",
    "tokenization_utils_base: _from_pretrained",
)
ADDED_TOKENS = Fact(
    "added tokens",
    (
        "tokenizer.json: added_tokens",
        "tokenizer_config.json: added_tokens_decoder",
        "added_tokens.json",
        "*_token in special_tokens_map.json or tokenizer_config.json",
    ),
    "Each place adds what those before it lack, also beside a tokenizer.model that knows none of them. A text or an id "
    "that another place has already is not used; a role's text without an id gets the next. For classes that build "
    "their tokenizer themselves (LlamaTokenizer, GemmaTokenizer, GPT2Tokenizer, Qwen2Tokenizer) the second place comes "
    "first.",
    "tokenization_utils_base: _from_pretrained; tokenization_utils_tokenizers: TokenizersBackend.__init__",
)
WORDS = Fact(
    "tokenizer file",
    ("tokenizer.json", "tokenizer.model", "vocab.json, merges.txt"),
    "A tokenizer.model beside a tokenizer.json of the same words is read for its exact scores; one of other words is a "
    "base's, and not used. The last place is known by the class: GPT2Tokenizer and Qwen2Tokenizer.",
    "tokenization_utils_tokenizers: TokenizersBackend.convert_to_native_format",
)
WEIGHTS = Fact(
    "weights",
    (
        "config.json: transformers_weights",
        "model.safetensors",
        "model.safetensors.index.json",
        "the only *.safetensors",
    ),
    "Of two sets in a folder one is read, the other is named in the report. `consolidated*.safetensors` "
    "(Mistral's own names) and `adapter_model*.safetensors` are none. The last place is ours.",
    "modeling_utils: _get_resolved_checkpoint_files",
)
DTYPE = Fact(
    "dtype",
    (
        "the weights",
        "config.json: dtype",
        "config.json: torch_dtype",
        "config.json: text_config.dtype",
        "config.json: text_config.torch_dtype",
    ),
    "Weights are read as they are stored; it is told where config.json's dtype differs: transformers would round them.",
    "configuration_utils: PreTrainedConfig.__post_init__; the first place is ours",
)
NAME = Fact(
    "name",
    (
        "the folder's name",
        "models--ORGANIZATION--NAME/snapshots/HASH",
        "config.json: _name_or_path",
        "the folder's name, a hash",
    ),
    "A snapshot's hash is no name: Hugging Face's cache has it two folders above.",
    "huggingface_hub names the folder; transformers has no say",
)
ROPE = Fact(
    "rope",
    ("config.json: rope_scaling", "config.json: rope_parameters"),
    "The first that is not empty is taken, with all that is in it. rope_theta within it beats rope_theta beside it; "
    "original_max_position_embeddings beside it beats that within. Gemma 3 adds rope_scaling to what rope_parameters "
    "has for full_attention.",
    "modeling_rope_utils: RotaryEmbeddingConfigMixin.convert_rope_params_to_dict, standardize_rope_params",
)
OUTPUT_MATRIX = Fact(
    "output matrix",
    ("lm_head.weight", "config.json: tie_word_embeddings"),
    "A matrix that is there is kept, whatever config.json says: they are tied only where there is none.",
    "modeling_utils: PreTrainedModel.tie_weights, which ties only what is equal",
)
FACTS = (
    *(CHAT_TEMPLATE, END_TOKENS, SAMPLING, WORDS, ROLES, ADDS, ADDED_TOKENS),
    *(WEIGHTS, DTYPE, NAME, ROPE, OUTPUT_MATRIX),
)
"""Every row, in the order of the documentation."""
