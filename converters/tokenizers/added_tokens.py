"""Tokens that a tokenizer has beyond its model's vocabulary, put together from all the files that list them.

transformers takes tokenizer.json's, and of the other files those that it lacks. A base's tokenizer.model beside it
knows none of them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from converters.facts import ADDED_TOKENS
from converters.tokenizers.special_tokens import own_class, role_texts
from edge_llama.errors import CheckpointError

_MOST_TOLD = 3
_IN_TOKENIZER, _IN_SETTINGS, _IN_FILE, _AS_ROLE = ADDED_TOKENS.places
_NOT_TOGETHER = "give the tokenizer files that came with these weights"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text before anything else.

    ``special``: no text to a reader. ``entry``: its flags, as the file has them. ``place``: the first that lists it.
    ``is_in_settings``: tokenizer_config.json does too.
    """

    index: int
    text: str
    special: bool
    entry: Mapping[str, Any]
    place: str
    is_in_settings: bool = False


def added_tokens(
    folder: Path,
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    vocab: Mapping[str, int],
    n_vocab: int,
    *,
    is_last: bool,
) -> tuple[list[AddedToken], dict[str, str]]:
    """The added tokens by id, and the report's note where files disagree on them.

    ``vocab``: ids of the model's own tokens; one of them that has a role is added too. One that has a role and no id
    gets the next, if it is below ``n_vocab``. ``is_last``: where another file than tokenizer.json gives an id or a text
    of theirs away, they keep it. CheckpointError for an id that is no number, and for two tokens of one place with the
    same id.
    """
    merged = _Merged(folder, vocab if is_last else {})
    for place, tokens in _said(folder, tokenizer, settings, vocab).items():
        for token in tokens:
            merged.add(token, is_vocab_kept=place in (_IN_SETTINGS, _IN_FILE))
    told = [f"not used, another place differs: {_some(merged.unused)}"] if merged.unused else []
    without = [text for text in role_texts(settings) if text not in vocab]
    told += merged.append(without, max(vocab.values(), default=-1), n_vocab)
    tokens = sorted(merged.by_id.values(), key=lambda token: token.index)
    return tokens, {ADDED_TOKENS.topic: "; ".join(told)} if told else {}


class _Merged:
    """Added tokens while places are put together, the first place's first."""

    def __init__(self, folder: Path, vocab: Mapping[str, int]) -> None:
        self.folder = folder
        self.by_id: dict[int, AddedToken] = {}
        self.ids: dict[str, int] = {}
        self.vocab, self.words = vocab, {index: text for text, index in vocab.items()}
        self.unused: list[str] = []

    def add(self, token: AddedToken, *, is_vocab_kept: bool) -> None:
        if type(token.index) is not int:
            raise self._fail(token, f"has id {token.index!r:.100}, expected a number")
        there = self.by_id.get(token.index)
        if there is not None and there.text == token.text:
            if token.is_in_settings:  # whose flags count in any case
                self.by_id[token.index] = token
        elif there is not None and there.place == token.place:
            raise self._fail(token, f"and {there.text[:100]!r} share the id {token.index}")
        elif there is not None or token.text in self.ids or (is_vocab_kept and not self._fits_vocab(token)):
            self.unused.append(f"{token.place}: {token.text[:40]!r} as {token.index}")
        else:
            self.by_id[token.index] = token
            self.ids[token.text] = token.index

    def append(self, texts: Sequence[str], last: int, n_vocab: int) -> list[str]:
        """Give the next ids to those that have none, as transformers does; says so."""
        told = []
        for text in texts:
            if text in self.ids:
                continue
            index = max(last, *self.by_id, last) + 1
            if index < n_vocab:
                self.add(_listed(index, {"content": text, "special": True}, (), _AS_ROLE), is_vocab_kept=False)
                told.append(f"{text[:40]!r} has a role and no id, it gets the next, {index}")
            else:
                told.append(f"{text[:40]!r} has a role and no id, and the embedding no row for it: not used")
        return told

    def _fits_vocab(self, token: AddedToken) -> bool:
        return (
            self.vocab.get(token.text, token.index) == token.index
            and self.words.get(token.index, token.text) == token.text
        )

    def _fail(self, token: AddedToken, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: {token.place}: token {token.text[:100]!r} {problem}", remedy=_NOT_TOGETHER
        )


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_TOLD} more" if len(texts) > _MOST_TOLD else ""
    return f"{'; '.join(texts[:_MOST_TOLD])}{more}"


def _said(
    folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], vocab: Mapping[str, int]
) -> dict[str, list[AddedToken]]:
    """What each place lists, the one that decides first."""
    roles = role_texts(settings)
    path = folder / _IN_FILE
    in_file = read_json(path) if path.is_file() else {}
    said = {
        _IN_TOKENIZER: [
            _listed(entry["id"], entry, roles, _IN_TOKENIZER) for entry in tokenizer.get("added_tokens") or []
        ],
        _IN_SETTINGS: [
            _listed(int(key) if re.fullmatch(r"[0-9]{1,10}", key) else key, entry, roles, _IN_SETTINGS)
            for key, entry in (settings.get("added_tokens_decoder") or {}).items()
        ],
        _IN_FILE: [_listed(index, {"content": text}, roles, _IN_FILE) for text, index in in_file.items()],
        _AS_ROLE: [_listed(vocab[text], {"content": text}, roles, _AS_ROLE) for text in roles if text in vocab],
    }
    return {_IN_SETTINGS: said[_IN_SETTINGS], **said} if own_class(tokenizer, settings, {}) else said


def _listed(index: Any, entry: Mapping[str, Any], roles: Collection[str], place: str) -> AddedToken:
    text = entry["content"]
    return AddedToken(
        index, text, bool(entry.get("special")) or text in roles, entry, place, is_in_settings=place == _IN_SETTINGS
    )
