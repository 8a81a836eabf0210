"""Which tokens have a role (BOS, EOS, ...), and which of them surround a text."""

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_CODE_LLAMA = {"prefix": "\u2581<PRE>", "suffix": "\u2581<SUF>", "middle": "\u2581<MID>", "eot": "\u2581<EOT>"}


def token_text(token: Any) -> str | None:
    """A token given as text or as an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def special_tokens(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], n_vocab: int
) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids by kind and which are added: tokenizer files first, then config.json."""
    texts = {kind: token_text(settings.get(f"{kind}_token")) for kind in KINDS}
    add = _added_by_post_processor(tokenizer, texts) if tokenizer else {}
    ids = {token_text(entry): entry["id"] for entry in reversed(tokenizer.get("added_tokens") or [])}
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
