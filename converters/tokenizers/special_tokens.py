"""Which tokens have a role (BOS, EOS, ...), and which of them surround a text."""

from collections.abc import Mapping, Sequence
from typing import Any

from converters.facts import ROLES, decide, notes

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MORE = ("additional_special_tokens", "extra_special_tokens")
CLASS_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>"},
    "CodeLlamaTokenizer": {"bos": "<s>", "eos": "</s>"},
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>"},
    "GPT2Tokenizer": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos": "<|endoftext|>"},
}
"""BOS and EOS where no file names one, by transformers' classes that build their tokenizer themselves."""
_BY_FAMILY = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
"""The class where no file names one; for qwen2 transformers takes it whatever is named."""
_CODE_LLAMA = {"prefix": "\u2581<PRE>", "suffix": "\u2581<SUF>", "middle": "\u2581<MID>", "eot": "\u2581<EOT>"}


def token_text(token: Any) -> str | None:
    """A token given as text or as an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def role_texts(settings: Mapping[str, Any]) -> set[str]:
    """The texts of all tokens that have a role, be it only to be special."""
    named = [settings.get(f"{kind}_token") for kind in KINDS]
    more = [settings.get(key) or () for key in _MORE]
    listed = [token for tokens in more for token in (tokens.values() if isinstance(tokens, Mapping) else tokens)]
    return {text for token in (*named, *listed) if (text := token_text(token)) is not None}


def with_roles(
    settings: Mapping[str, Any], special_map: Mapping[str, Any], default: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json's ``settings`` with the roles that transformers gives tokens, and notes for the report.

    ``special_map`` is special_tokens_map.json's content, ``default`` what the tokenizer's class says.
    """
    if "added_tokens_decoder" in settings:
        special_map = {}
    merged, told = {**settings}, {}
    for kind in KINDS:
        key, fact = f"{kind}_token", ROLES.of(kind)
        texts = (token_text(special_map.get(key)), token_text(settings.get(key)), default.get(kind))
        if key in settings or key in special_map:
            texts = (*texts[:2], None)
        found = decide(fact, dict(zip(fact.places, texts, strict=False)))
        merged |= {key: found.value} if found else {}
        told |= notes((fact, found))
    return merged | {key: special_map[key] for key in _MORE if special_map.get(key)}, told


def own_class(tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Transformers' class, if it is one that builds its tokenizer itself of a vocabulary and merges; else empty."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    of_family = _BY_FAMILY.get(str(config.get("model_type")), "")
    name = of_family if named is None or config.get("model_type") == "qwen2" else str(named).removesuffix("Fast")
    is_byte_level = "ByteLevel" in str(tokenizer.get("pre_tokenizer"))
    # LlamaTokenizer splits as sentencepiece does: with another tokenizer.json transformers takes a class that reads it.
    return "" if name not in CLASS_DEFAULTS or (name == "LlamaTokenizer" and is_byte_level) else name


def special_tokens(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], tokens: Sequence[str]
) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids by kind and which are added: tokenizer files first, then config.json. ``tokens``: texts by id."""
    n_vocab = len(tokens)
    texts = {kind: token_text(settings.get(f"{kind}_token")) for kind in KINDS}
    add = _added_by_post_processor(tokenizer, texts) if tokenizer else {}
    ids = {text: index for index, text in enumerate(tokens)}
    special: dict[str, int] = {}
    for kind, text in texts.items():
        flag = settings.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            add.setdefault(kind, flag)
        for index in (ids.get(text) if text else None, config.get(f"{kind}_token_id")):
            if type(index) is int and 0 <= index < n_vocab:
                special.setdefault(kind, index)
    return special, {kind: flag for kind, flag in add.items() if kind in ("bos", "eos", "sep")}


def infill_tokens(tokens: Sequence[str]) -> dict[str, int]:
    """The tokens by which CodeLlama fills in text, if the vocabulary has all of them."""
    found = {}
    for kind, text in _CODE_LLAMA.items():
        spellings = [spelling for spelling in (text, text.replace("\u2581", " ")) if spelling in tokens]
        if not spellings:
            return {}
        found[kind] = tokens.index(spellings[0])
    return found


def _added_by_post_processor(tokenizer: Mapping[str, Any], texts: dict[str, str | None]) -> dict[str, bool]:
    """Whether BOS and EOS surround a text, by tokenizer.json's post-processor; ``texts`` may be renamed by it."""
    post = tokenizer.get("post_processor") or {}
    add: dict[str, bool] = {}
    for step in post.get("processors") or [post]:
        single = step.get("single") or []
        if step.get("type") == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing" and len(single) > 1:
            first, last = _special(single[0]), _special(single[-1])
            if first:
                texts["bos"] = texts.get("bos") or first
                add["bos"] = first in (texts["bos"], texts.get("cls"))
            if last:
                if texts.get("eos") not in (None, last):
                    texts["eot"] = texts["eos"]
                texts["eos"] = last
                add["eos"] = True
            between = _between(step.get("pair") or [], first, last)
            if between:
                ends = {texts.get("sep"), texts.get("eos")} - {None}
                add["sep"] = (between[0] in ends and not last) or (len(between) == 2 and between[1] in ends)
    return add


def _between(pair: list[dict[str, Any]], first: str | None, last: str | None) -> list[str | None]:
    """What a post-processor puts between two texts, A and B."""
    inner = pair[1:] if first and pair and _special(pair[0]) == first else pair
    inner = inner[:-1] if last and inner and _special(inner[-1]) == last else inner
    names = [(step.get("Sequence") or {}).get("id") for step in inner]
    return [_special(step) for step in inner[1:-1]] if names[:1] == ["A"] and names[-1:] == ["B"] else []


def _special(step: Mapping[str, Any]) -> str | None:
    """The special token that a step of a post-processor's template writes."""
    text = (step.get("SpecialToken") or {}).get("id")
    return text if isinstance(text, str) else None
