"""Which tokens have a role (BOS, EOS, ...), and which of them surround a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.facts import ADDS, ROLES, decide, notes

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADDED_KINDS = ("bos", "eos", "sep")
CLASS_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "CodeLlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    "GPT2Tokenizer": dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
}
"""Roles that no file gives, by transformers' classes that build their tokenizer themselves."""
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


def role_texts(settings: Mapping[str, Any]) -> list[str]:
    """The texts of all tokens that have a role, be it only to be special, in transformers' order."""
    named = [token_text(settings.get(f"{kind}_token")) for kind in KINDS]
    return list(dict.fromkeys(text for text in (*named, *_without_kind(settings)) if text))


def _without_kind(settings: Mapping[str, Any]) -> list[str]:
    """Texts of tokens that are special and nothing else: listed as such, or of the model's own, as ``image_token``."""
    lists = [settings.get(key) or () for key in ("additional_special_tokens", "extra_special_tokens")]
    listed = [token for tokens in lists for token in (tokens.values() if isinstance(tokens, Mapping) else tokens)]
    kinds = {f"{kind}_token" for kind in KINDS}
    of_model = [token for key, token in settings.items() if key.endswith("_token") and key not in kinds]
    return [text for token in (*of_model, *listed) if (text := token_text(token))]


def with_roles(
    settings: Mapping[str, Any], special_map: Mapping[str, Any], default: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json's ``settings`` with the roles that transformers gives tokens, and notes for the report.

    ``special_map`` is special_tokens_map.json's content, ``default`` what the tokenizer's class says. Of that BOS and
    EOS alone have a role, as templates use them: llama.cpp's converter knows none of the others, which are special.
    """
    if "added_tokens_decoder" in settings:
        special_map = {}
    told: dict[str, str] = {}
    merged, more = {**settings}, [*_without_kind(settings), *_without_kind(special_map)]
    for kind in KINDS:
        key, fact = f"{kind}_token", ROLES.of(kind)
        is_open = key not in settings and key not in special_map
        if is_open and kind in default and kind not in ("bos", "eos"):
            more.append(default[kind])
            continue
        own = default.get(kind) if is_open else None
        texts = (token_text(special_map.get(key)), token_text(settings.get(key)), own)
        found = decide(fact, dict(zip(fact.places, texts, strict=False)))
        merged |= {key: found.value} if found else {}
        told |= notes((fact, found))
    return merged | {"additional_special_tokens": None, "extra_special_tokens": more}, told


def own_class(tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Transformers' class, if it is one that builds its tokenizer itself of a vocabulary and merges; else empty."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    of_family = _BY_FAMILY.get(str(config.get("model_type")), "")
    name = of_family if named is None or config.get("model_type") == "qwen2" else str(named).removesuffix("Fast")
    is_byte_level = "ByteLevel" in str(tokenizer.get("pre_tokenizer"))
    # LlamaTokenizer splits as sentencepiece does: with another tokenizer.json transformers takes a class that reads it.
    return "" if name not in CLASS_DEFAULTS or (name == "LlamaTokenizer" and is_byte_level) else name


@dataclass(frozen=True, slots=True)
class Special:
    """Ids of tokens by role, which of them are put around a text, and the report's notes on these."""

    ids: Mapping[str, int]
    add: Mapping[str, bool]
    notes: Mapping[str, str]


def special_tokens(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], tokens: Sequence[str]
) -> Special:
    """Tokenizer files first, then config.json. ``tokens``: texts by id."""
    texts = {kind: token_text(settings.get(f"{kind}_token")) for kind in KINDS}
    add = _added_by_post_processor(tokenizer, texts)
    of_text = {text: index for index, text in enumerate(tokens)}
    ids: dict[str, int] = {}
    for kind, text in texts.items():
        for index in (of_text.get(text) if text else None, config.get(f"{kind}_token_id")):
            if type(index) is int and 0 <= index < len(tokens):
                ids.setdefault(kind, index)
    told: dict[str, str] = {}
    for kind in ADDED_KINDS:
        fact, flag = ADDS.of(kind), settings.get(f"add_{kind}_token")
        by_steps = add.get(kind, False if kind != "sep" else None) if tokenizer else None
        found = decide(fact, dict(zip(fact.places, (by_steps, flag), strict=True)))
        if found is not None and (kind in add or flag is not None):
            add[kind] = found.value
            told |= notes((fact, found))
    return Special(ids, {kind: flag for kind, flag in add.items() if kind in ADDED_KINDS}, told)


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
