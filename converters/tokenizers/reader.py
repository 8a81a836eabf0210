"""Tokenizer files (tokenizer.model, tokenizer.json and the like) to a Vocabulary; the way back is ``writer``.

What is derived follows llama.cpp's converter (``conversion/base.py``, ``gguf-py/gguf/vocab.py``). Some differences
are deliberate: a byte-level BPE is recognised by its splitting regex, not by a hash of one encoded text (an edited
or retrained tokenizer works); and a sentencepiece vocabulary that comes as tokenizer.json alone gets scores by the
order of its merges (llama.cpp's converter writes -1000 for every token, which tokenizes differently). And types are
what the files say: a token that is not special is none because it looks like ``<|...|>``, a piece that the user
defined is taken whole.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.facts import WORDS
from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.tokenizers.added_tokens import AddedToken, added_tokens
from converters.tokenizers.pre_tokenizers import pre_tokenizer_name
from converters.tokenizers.sentencepiece_model import read_spec, user_defined
from converters.tokenizers.special_tokens import CLASS_DEFAULTS, infill_tokens, own_class, special_tokens, with_roles
from converters.tokenizers.structure import MODEL, SETTINGS, SPECIAL_MAP, TOKENIZER, check_fields, read_checked
from converters.tokenizers.template_files import chat_templates, template_files
from converters.tokenizers.text_steps import (
    SPACE,
    Steps,
    sentencepiece_spec,
    sentencepiece_steps,
    unicode_forms,
    with_flags,
)
from converters.tokenizers.tiktoken_ranks import is_ranks
from converters.tokenizers.vocab_and_merges import MERGES, VOCAB, read_pair
from edge_llama.errors import CheckpointError
from edge_llama.files.byte_letters import byte_letters
from edge_llama.files.text_rules import SpacePrefix, TextRules
from edge_llama.host.regular_files import content_of, opened

_SPACE_LETTER = byte_letters()[ord(" ")]
_PLACEHOLDER = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<unused\d*>")  # Gemma's, mostly
_NOT_TOGETHER = "give the tokenizer files that came with these weights"
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("added_tokens.json", "special_tokens_map.json", VOCAB, MERGES),
)


def read_folder(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a Hugging Face folder, padded to config's vocab_size as the embedding is.

    A ``tokenizer.model`` (sentencepiece) comes first, as in llama.cpp's converter. Raises CheckpointError.
    """
    n_vocab = config.get("vocab_size")
    if type(n_vocab) is not int or n_vocab < 1:
        raise CheckpointError(
            f"{folder}: config.json: vocab_size is {n_vocab!r}, expected a positive integer",
            remedy="download config.json again",
        )
    try:
        vocabulary = _read(folder, config, n_vocab)
    except RecursionError as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'}: nested too deeply", remedy="download it again") from error
    _check_text(folder, vocabulary)
    _check_unique(folder, vocabulary)
    return vocabulary


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that :func:`read_folder` reads, if they are there."""
    return [*(folder / name for name in _FILES), *template_files(folder)]


def _read(folder: Path, config: Mapping[str, Any], n_vocab: int) -> Vocabulary:
    path = folder / "tokenizer.json"
    tokenizer = read_checked(path, TOKENIZER)
    settings = read_checked(folder / "tokenizer_config.json", SETTINGS)
    special_map = read_checked(folder / "special_tokens_map.json", SPECIAL_MAP)
    name = own_class(tokenizer, settings, config)
    settings, told = with_roles(settings, special_map, CLASS_DEFAULTS.get(name, {}))
    if (folder / "tokenizer.model").is_file() and not (tokenizer and _has_ranks(folder / "tokenizer.model")):
        vocabulary = _sentencepiece(folder, tokenizer, settings, n_vocab)
    elif tokenizer:
        vocabulary = _bpe(path, tokenizer, settings, n_vocab)
    elif pair := read_pair(folder, settings, config):
        vocabulary = _bpe(folder / VOCAB, pair, settings, n_vocab)
    else:
        raise CheckpointError(
            f"{folder}: neither tokenizer.json nor tokenizer.model is there", remedy="download the tokenizer too"
        )
    special = special_tokens(tokenizer, settings, config, vocabulary.tokens)
    add = dict(special.add)
    if vocabulary.model == "gpt2" or tokenizer:  # where no file speaks of a BOS there is none, whatever llama.cpp does
        add.setdefault("bos", False)
    templates, of_templates = chat_templates(folder, settings)
    flag = vocabulary.add_space_prefix
    if vocabulary.rules.space_prefix is SpacePrefix.METASPACE_FIRST and templates:
        flag = False  # a chat begins with a token; for other runtimes, which know the flag alone
    return replace(
        vocabulary,
        special={**special.ids, **infill_tokens(vocabulary.tokens)},
        add=add,
        add_space_prefix=settings.get("add_prefix_space") if flag is None else flag,
        chat_templates=templates,
        notes={**vocabulary.notes, **told, **special.notes, **of_templates},
    )


def _has_ranks(path: Path) -> bool:
    """Whether a tokenizer.model is tiktoken's, which may lie beside a tokenizer.json that says the same and more."""
    try:
        with opened(path) as file:
            return is_ranks(file.read(4096))
    except OSError:
        return False  # who reads all of it will say so


def _check_unique(folder: Path, vocabulary: Vocabulary) -> None:
    """llama.cpp ends the process on a vocabulary that has a text twice."""
    text, times = Counter(filter(None, vocabulary.tokens)).most_common(1)[0]
    if times > 1:
        ids = [index for index, token in enumerate(vocabulary.tokens) if token == text]
        raise CheckpointError(
            f"{folder}: the tokenizer's files give the token {text[:100]!r} the ids {ids[0]} and {ids[1]}",
            remedy=_NOT_TOGETHER,
        )


def _check_text(folder: Path, vocabulary: Vocabulary) -> None:
    """JSON may escape half of a surrogate pair, which is no character and has no UTF-8."""
    texts = [*vocabulary.tokens, *(vocabulary.merges or ())]
    texts += [text for item in vocabulary.chat_templates.items() for text in item]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        damaged = next(text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text))
        raise CheckpointError(
            f"{folder}: the tokenizer's files hold {damaged[:100]!r}, which is not valid Unicode",
            remedy="download the tokenizer again",
        ) from None


def read_sentencepiece(path: Path, n_vocab: int) -> Vocabulary:
    """The vocabulary of a sentencepiece model that stands alone, padded to ``n_vocab`` tokens; its text gets a BOS."""
    table, pieces, steps = _pieces(path, n_vocab, legacy=True)
    ids = {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unk": pieces.unk_id(), "pad": pieces.pad_id()}
    special = {kind: index for kind, index in ids.items() if index >= 0}
    add = {"bos": "bos" in special, "eos": False, "sep": False}
    return replace(table.sentencepiece(steps), special=special, add=add)


def _sentencepiece(folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], n_vocab: int) -> Vocabulary:
    """The words of tokenizer.model; what is done with text is said by a tokenizer.json beside it, if there is one."""
    path = folder / "tokenizer.model"
    table, pieces, steps = _pieces(
        path, n_vocab, legacy=bool(settings.get("legacy"))
    )  # transformers 5: false if absent
    if tokenizer:
        _check_bpe(folder / "tokenizer.json", tokenizer)
        steps = sentencepiece_steps(folder / "tokenizer.json", tokenizer)
    elif settings.get("add_prefix_space") is False:
        steps = replace(steps, add_space_prefix=False, rules=replace(steps.rules, space_prefix=None))
    own = {pieces.id_to_piece(index): index for index in range(pieces.vocab_size())}
    if tokenizer and (other := _other_word(tokenizer, pieces)):
        told = {WORDS.topic: f"by tokenizer.json; tokenizer.model has another vocabulary ({other}) and is not used"}
        vocabulary = _bpe(folder / "tokenizer.json", tokenizer, settings, n_vocab)
        return replace(vocabulary, notes={**vocabulary.notes, **told})
    added, told = added_tokens(folder, tokenizer, settings, own, n_vocab, is_last=False)
    for token in added:
        text, kind = _added(token, SPACE)
        table.check(token.index, text)
        is_known = table.tokens[token.index] == text and table.types[token.index] != TokenType.NORMAL
        if token.is_in_settings or not is_known:
            table.put(token.index, text, kind, -1000.0)
    return replace(table.sentencepiece(_with_flags(path, steps, added)), notes=told)


def _other_word(tokenizer: Mapping[str, Any], pieces: Any) -> str:
    """The first token of tokenizer.json that a tokenizer.model lacks or calls otherwise; empty if there is none."""
    added = {entry["content"] for entry in tokenizer.get("added_tokens") or []}
    size = pieces.vocab_size()
    for text, index in tokenizer["model"]["vocab"].items():
        if type(index) is not int or text in added:
            continue
        # Bytes are spelled as letters in Gemma's.
        if not (0 <= index < size and (pieces.id_to_piece(index) == text or pieces.is_byte(index))):
            return f"{text[:40]!r} as {index}"
    return ""


def _pieces(path: Path, n_vocab: int, *, legacy: bool) -> tuple["_Table", Any, Steps]:
    """A sentencepiece model's tokens, the loaded model, and what it does with text."""
    try:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - an extra, needed for these checkpoints only
    except ImportError as error:
        raise CheckpointError(
            f"{path}: reading it needs the package sentencepiece", remedy='pip install "edge-llama[convert]"'
        ) from error
    try:
        content = content_of(path)
        if not content:  # sentencepiece takes it for no argument at all
            raise RuntimeError("empty")
        pieces = SentencePieceProcessor(model_proto=content)
        pieces.vocab_size()
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: not a sentencepiece model", remedy="download it again") from error
    spec, whole = read_spec(content, path), user_defined(content)
    size = pieces.vocab_size()
    if size > n_vocab:
        raise CheckpointError(
            f"{path}: {size:,} tokens but the embedding has {n_vocab:,} rows (vocab_size)", remedy=_NOT_TOGETHER
        )
    table = _Table(path, n_vocab, padding_score=-10000.0)
    for index in range(size):
        text, kind = pieces.id_to_piece(index), _piece_type(pieces, index)
        if index in whole:  # found in text as it is given, where a space is a space
            text, kind = text.replace(SPACE, " "), TokenType.USER_DEFINED
        table.put(index, text, kind, pieces.get_score(index))
    return table, pieces, sentencepiece_spec(spec, legacy=legacy, has_whole=bool(whole))


def _piece_type(pieces: Any, index: int) -> TokenType:
    if pieces.is_unknown(index):
        return TokenType.UNKNOWN
    if pieces.is_control(index):
        return TokenType.CONTROL
    if pieces.is_unused(index):
        return TokenType.UNUSED
    return TokenType.BYTE if pieces.is_byte(index) else TokenType.NORMAL


def _bpe(path: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], n_vocab: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json that stands alone."""
    _check_bpe(path, tokenizer)
    read = _sentencepiece_json if tokenizer["model"].get("byte_fallback") else _byte_level
    return read(path, tokenizer, settings, n_vocab)


def _check_bpe(path: Path, tokenizer: Mapping[str, Any]) -> None:
    check_fields(path, tokenizer, MODEL)
    model = tokenizer["model"]
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(
            f"{path}: tokenizer model {model.get('type')!r} is not supported", remedy="supported: BPE"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if mark := model.get(key):
            raise CheckpointError(
                f"{path}: model.{key} is {mark!r:.100}, which no vocabulary written here can say",
                remedy="supported: none",
            )


def _sentencepiece_json(
    path: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], n_vocab: int
) -> Vocabulary:
    """A sentencepiece vocabulary given as tokenizer.json: the rank of a token's first merge is its score."""
    model, steps = tokenizer["model"], sentencepiece_steps(path, tokenizer)
    if model.get("ignore_merges") and not steps.whole:
        raise CheckpointError(
            f"{path}: model.ignore_merges is true, which no sentencepiece vocabulary can say",
            remedy="set it to false if the tokenizer was trained so",
        )
    merges = list(_merges(path, model))
    _check_merges(path, merges, model["vocab"])
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    table = _Table(path, n_vocab, padding_score=-10000.0)
    for text, index in model["vocab"].items():
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = TokenType.BYTE if is_byte else TokenType.NORMAL
        if text == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        # Characters that no merge makes: they only need to be worse than all that merges make.
        table.claim(index, text)
        score = 0.0 if is_byte else -float(ranks.get(text, len(ranks)))
        if text in steps.whole:
            table.put(index, text.replace(SPACE, " "), TokenType.USER_DEFINED, score)
        else:
            table.put(index, text, kind, score)
    added, told = added_tokens(path.parent, tokenizer, settings, model["vocab"], n_vocab, is_last=True)
    for token in added:
        table.claim(token.index, token.text)
        if table.types[token.index] != TokenType.UNKNOWN:
            table.put(token.index, *_added(token, SPACE), -1000.0)
    return replace(table.sentencepiece(_with_flags(path, steps, added)), notes=told)


def _byte_level(path: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], n_vocab: int) -> Vocabulary:
    model = tokenizer["model"]
    pre, forms = pre_tokenizer_name(path, tokenizer), unicode_forms(path, tokenizer)
    table = _Table(path, n_vocab)
    for text, index in model["vocab"].items():
        table.claim(index, text)
        table.put(index, text, TokenType.NORMAL)
    added, told = added_tokens(path.parent, tokenizer, settings, model["vocab"], n_vocab, is_last=True)
    for token in added:
        table.claim(token.index, token.text)
        table.put(token.index, *_added(token, space=None))
    merges = list(_merges(path, model))
    _check_merges(path, merges, table.tokens)
    rules = with_flags(path, TextRules(unicode_forms=forms), _flags(added))
    return Vocabulary("gpt2", pre, table.tokens, table.types, merges=merges, rules=rules, origin=path, notes=told)


def _with_flags(path: Path, steps: Steps, added: Iterable[AddedToken]) -> Steps:
    return replace(steps, rules=with_flags(path, steps.rules, _flags(added)))


def _flags(added: Iterable[AddedToken]) -> list[tuple[int, Mapping[str, Any]]]:
    return [(token.index, token.entry) for token in added]


def _check_merges(path: Path, merges: Iterable[str], tokens: Iterable[str]) -> None:
    known = set(tokens)
    for merge in merges:
        if merge.count(" ") != 1 or not known.issuperset(merge.split(" ")):
            raise CheckpointError(
                f"{path}: merge {merge!r} names a token that is not in the vocabulary", remedy=_NOT_TOGETHER
            )


class _Table:
    """Tokens by id, filled with unused ones up to the embedding's size."""

    def __init__(self, path: Path, n_vocab: int, padding_score: float = 0.0) -> None:
        self.path = path
        self.tokens = [f"[PAD{index}]" for index in range(n_vocab)]
        self.types = [int(TokenType.UNUSED)] * n_vocab
        self.scores = [padding_score] * n_vocab

    def check(self, index: Any, text: str) -> None:
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise CheckpointError(
                f"{self.path}: token {text[:100]!r} has id {index!r:.100}, the embedding has {len(self.tokens):,} rows "
                "(vocab_size)",
                remedy=_NOT_TOGETHER,
            )

    def claim(self, index: Any, text: str) -> None:
        """CheckpointError unless the id is free, or has this text already."""
        self.check(index, text)
        if self.types[index] != TokenType.UNUSED and self.tokens[index] != text:
            raise CheckpointError(
                f"{self.path}: tokens {self.tokens[index][:100]!r} and {text[:100]!r} share the id {index}",
                remedy=_NOT_TOGETHER,
            )

    def put(self, index: Any, text: str, kind: TokenType, score: float = 0.0) -> None:
        self.check(index, text)
        self.tokens[index], self.types[index], self.scores[index] = text, int(kind), score

    def sentencepiece(self, steps: Steps) -> Vocabulary:
        """The vocabulary of these tokens, which does with text what ``steps`` say."""
        return Vocabulary(
            "llama",
            "default",
            self.tokens,
            self.types,
            scores=self.scores,
            add_space_prefix=steps.add_space_prefix,
            rules=steps.rules,
            origin=self.path,
        )


def _added(token: AddedToken, space: str | None) -> tuple[str, TokenType]:
    """An added token's text and type; ``space`` is the letter that stands for one in a sentencepiece vocabulary.

    Placeholders that no text was trained with are control tokens, as llama.cpp's converter has them.
    """
    if token.special or _PLACEHOLDER.fullmatch(token.text):
        return token.text, TokenType.CONTROL
    return token.text.replace(space, " ") if space else token.text, TokenType.USER_DEFINED


def _merges(path: Path, model: Mapping[str, Any]) -> Iterator[str]:
    """Merges as ``a b``; spaces inside a part (newer tokenizer.json files) in GPT-2's byte alphabet."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: the tokenizer has no merges", remedy=_NOT_TOGETHER)
    for at, merge in enumerate(merges):
        if isinstance(merge, str):
            yield merge
        elif isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
            yield " ".join(part.replace(" ", _SPACE_LETTER) for part in merge)
        else:
            raise CheckpointError(
                f"{path}: model.merges[{at}] is {merge!r:.100}, expected two texts", remedy=_NOT_TOGETHER
            )
