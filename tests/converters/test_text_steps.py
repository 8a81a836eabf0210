"""What a tokenizer does beyond its words: the ids of tokenizers and sentencepiece, by both engines, or a refusal."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import family_tokenizers
import pytest
import vocabularies
from refusals import refusal
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from texts import TORTURE
from tokenizer_files import artifact, by_llama_cpp, written
from tokenizers import Tokenizer

from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.tokenizers.reader import read_folder
from edge_llama.errors import CheckpointError
from edge_llama.prompts.hf_tokenizer import HFTokenizer

MARK, END, TOOL = "<|im_start|>", "<|im_end|>", "<tool>"
TEXTS = (*TORTURE, "river stone", " river", TOOL, f"{TOOL}river", f"a{TOOL} b", f" {TOOL}  a {TOOL}", f"{TOOL}{TOOL} x")
CHATS = (
    [MARK, "user\nriver", END, "\n", MARK, "assistant\n"],
    [MARK, " river  ", END, f" a {TOOL}b", END],
    ["river", MARK, "stone", END, "  "],
)
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
DOUBLE = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}
MERGED = [
    {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
]
Edit = Callable[[dict[str, Any]], Any]


def steps(normalizers: list[dict[str, Any]], pre_tokenizer: Any = None) -> Edit:
    normalizer = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    return lambda content: content.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer)


FORMS: dict[str, Edit] = {
    "Prepend": lambda content: content,
    "Metaspace, always": steps([], {**METASPACE, "prepend_scheme": "always"}),
    "Metaspace, first": steps([], {**METASPACE, "prepend_scheme": "first"}),
    "Metaspace, never": steps([], {**METASPACE, "prepend_scheme": "never"}),
    "Metaspace of old, always": steps([], {**METASPACE, "add_prefix_space": True}),
    "Metaspace, always, as sentencepiece": steps([ESCAPE, DOUBLE], {**METASPACE, "prepend_scheme": "always"}),
    "no prefix": steps([ESCAPE]),
    "no prefix, as Gemma": lambda content: content.update(
        normalizer=ESCAPE,
        pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ),
    "spaces merged": steps([*MERGED, ESCAPE]),
    "NFKC": steps([{"type": "NFKC"}, ESCAPE]),
}


def sentencepiece_json(folder: Path, edit: Edit, **flags: bool) -> Path:
    """A tokenizer.json of sentencepiece's kind with three added tokens; ``flags`` are the last one's."""
    content = vocabularies.sentencepiece_as_json(vocabularies.sentencepiece_model())
    n_words = len(content["model"]["vocab"])
    plain = content["added_tokens"][0]
    for at, text in enumerate((MARK, END, TOOL)):
        more = {"id": n_words + at, "content": text, "special": text != TOOL}
        content["added_tokens"].append(plain | more | (flags if text == TOOL else {}))
    edit(content)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return folder


def read(folder: Path) -> Vocabulary:
    return read_folder(folder, {"vocab_size": 1000})


def whole(reference: Tokenizer, text: str, *, special: bool) -> list[int]:
    reference.encode_special_tokens = not special
    return list(reference.encode(text, add_special_tokens=False).ids)


def check(vocabulary: Vocabulary, reference: Tokenizer, folder: Path) -> None:
    """The ids of texts and of chats, by GGUF and by the tokenizer.json that is written, are the reference's."""
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    hf = HFTokenizer(artifact(written(vocabulary, folder / "written")))
    with by_llama_cpp(vocabulary, folder) as gguf:
        for tokenizer in (gguf, hf):
            for text in TEXTS:
                assert tokenizer.encode(text) == whole(reference, text, special=False), (type(tokenizer), text)
            for chat in CHATS:
                parts: list[str | int] = [ids[part] if part in (MARK, END) else part for part in chat]
                expected = whole(reference, "".join(chat), special=True)
                assert tokenizer.encode_parts(parts) == expected, (type(tokenizer), chat)


@pytest.mark.parametrize("form", FORMS)
def test_spaces_before_text_are_put_as_tokenizers_does(form: str, tmp_path: Path) -> None:
    folder = sentencepiece_json(tmp_path / "source", FORMS[form])
    check(read(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path)


@pytest.mark.parametrize("form", ["Prepend", "Metaspace, first"])
@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}], ids=str)
def test_a_token_takes_the_white_space_beside_it(form: str, flags: dict[str, bool], tmp_path: Path) -> None:
    folder = sentencepiece_json(tmp_path / "source", FORMS[form], **flags)
    check(read(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path)


def test_control_tokens_take_the_white_space_beside_them(tmp_path: Path) -> None:
    """As Phi-3's, of which llama.cpp knows by the model's name."""

    def strip(content: dict[str, Any]) -> None:
        for entry in content["added_tokens"]:
            entry["rstrip"] = entry["content"] in (MARK, END)

    folder = sentencepiece_json(tmp_path / "source", strip)
    check(read(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path)


def test_a_vocabulary_of_normalized_text_gets_normalized_text(tmp_path: Path) -> None:
    """Qwen's: llama.cpp gives it letters and accents as they come, tokenizers in NFC."""
    tokenizer = family_tokenizers.qwen()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_folder(tmp_path, {"vocab_size": tokenizer.get_vocab_size()})
    assert (vocabulary.pre, vocabulary.rules.unicode_forms) == ("qwen2", ("NFC",))
    check(vocabulary, tokenizer, tmp_path)


@pytest.mark.parametrize("has_model", [True, False])
def test_gemmas_vocabulary_is_read_from_either_file(*, has_model: bool, tmp_path: Path) -> None:
    """No space before text, line ends as pieces of the user; tokenizer.json says the same by other steps."""
    content = family_tokenizers.gemma_model()
    reference = Tokenizer.from_str(json.dumps(family_tokenizers.gemma_as_json(content)))
    reference.encode_special_tokens = True
    pieces = SentencePieceProcessor(model_proto=content)
    reference.save(str(tmp_path / "tokenizer.json"))
    if has_model:
        (tmp_path / "tokenizer.model").write_bytes(content)
    vocabulary = read_folder(tmp_path, {"vocab_size": len(pieces) + 8})
    assert (vocabulary.model, vocabulary.add_space_prefix) == ("llama", False)
    with by_llama_cpp(vocabulary, tmp_path) as gguf:
        for text in (*TORTURE, "a\n\nb\n\n\n\nc", " \n x"):
            expected = reference.encode(text, add_special_tokens=False).ids
            assert gguf.encode(text) == expected == pieces.encode(text), text


@cache
def model(kind: str = "bpe", **options: Any) -> bytes:
    given = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": kind in ("bpe", "unigram"),
        "hard_vocab_limit": False,
    }
    out, lines = io.BytesIO(), vocabularies.corpus()[::3]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type=kind,
        vocab_size=500,
        minloglevel=2,
        **given | options,
    )
    return out.getvalue()


def model_folder(folder: Path, content: bytes, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Unigram": ({"kind": "unigram"}, r"of the kind Unigram \(model_type\)"),
    "words": ({"kind": "word"}, "of the kind word"),
    "characters": ({"kind": "char"}, "of the kind char"),
    "normalized": ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text by 'nmt_nfkc'"),
    "spaces at the end": ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sentencepiece_model_that_gguf_cannot_say_is_refused_by_name(name: str, tmp_path: Path) -> None:
    options, expected = REFUSED[name]
    folder = model_folder(tmp_path / "source", model(**options))
    with refusal(CheckpointError, expected, folder / "tokenizer.model"):
        read(folder)


@pytest.mark.parametrize("has_prefix", [True, False])
@pytest.mark.parametrize("merges", [True, False])
def test_a_tokenizer_model_says_what_it_does_with_spaces(*, has_prefix: bool, merges: bool, tmp_path: Path) -> None:
    content = model(add_dummy_prefix=has_prefix, remove_extra_whitespaces=merges)
    pieces = SentencePieceProcessor(model_proto=content)
    vocabulary = read(model_folder(tmp_path / "source", content, legacy=True))
    hf = HFTokenizer(artifact(written(vocabulary, tmp_path / "written")))
    with by_llama_cpp(vocabulary, tmp_path) as gguf:
        for text in TORTURE:
            if not (merges and text.endswith("▁")):  # which sentencepiece takes for a space there
                assert gguf.encode(text) == hf.encode(text) == pieces.encode(text), text


@pytest.mark.parametrize("settings", [{}, {"legacy": False}])
def test_only_the_first_text_gets_a_space_unless_legacy_is_set(settings: dict[str, bool], tmp_path: Path) -> None:
    """As transformers 5 reads a tokenizer.model."""
    content = model(user_defined_symbols="<user>,[SEP]")
    pieces = SentencePieceProcessor(model_proto=content)
    vocabulary = read(model_folder(tmp_path / "source", content, **settings))
    user = pieces.piece_to_id("<user>")
    with by_llama_cpp(vocabulary, tmp_path) as gguf:
        assert gguf.encode("return") == pieces.encode("return")
        bare = pieces.encode("\nreturn")[len(pieces.encode("\n")) :]
        assert gguf.encode_parts([user, "return"]) == [user, *bare]
        assert bare != pieces.encode("return")


def test_pieces_that_the_user_defined_are_taken_whole(tmp_path: Path) -> None:
    content = model(user_defined_symbols="<user>,[SEP],▁▁▁")
    pieces = SentencePieceProcessor(model_proto=content)
    vocabulary = read(model_folder(tmp_path / "source", content, legacy=True, unk_token="<unk>"))
    for text, written_text in (("<user>", "<user>"), ("[SEP]", "[SEP]"), ("▁▁▁", "   ")):
        token = pieces.piece_to_id(text)
        assert (vocabulary.tokens[token], vocabulary.types[token]) == (written_text, TokenType.USER_DEFINED)
    back = read(written(vocabulary, tmp_path / "written"))
    (tmp_path / "written" / "tokenizer.model").unlink()
    hf = HFTokenizer(artifact(tmp_path / "written"))
    with by_llama_cpp(vocabulary, tmp_path) as gguf:
        for text in ("a <user> return[SEP]", "return   x", "<user>return", "   ", " <user>", *TORTURE):
            assert gguf.encode(text) == hf.encode(text) == pieces.encode(text), text
        for user in (pieces.piece_to_id("<user>"),):
            expected = [user, *pieces.encode("return"), user, *pieces.encode(" x")]
            for tokenizer in (gguf, hf):
                assert tokenizer.encode_parts([user, "return", user, " x"]) == expected
                assert tokenizer.control_tokens_of("<user>{{ x }}") == {**tokenizer.control_tokens, "<user>": user}
    for again in (back, read(tmp_path / "written")):
        assert (again.tokens, again.types, again.rules) == (vocabulary.tokens, vocabulary.types, vocabulary.rules)


def replaced(**changes: Any) -> Edit:
    return lambda content: content.update(changes)


def in_model(**changes: Any) -> Edit:
    return lambda content: content["model"].update(changes)


STRANGE: dict[str, tuple[Edit, str]] = {
    "lower case": (steps([{"type": "Lowercase"}, ESCAPE]), "normalizer: {'type': 'Lowercase'}"),
    "a map of characters": (steps([{"type": "Precompiled", "precompiled_charsmap": ""}]), "'Precompiled'"),
    "another letter for spaces": (replaced(pre_tokenizer={**METASPACE, "replacement": "_"}), "'replacement': '_'"),
    "words apart": (steps([], {**METASPACE, "split": True, "prepend_scheme": "first"}), "'split': True"),
    "an unknown scheme": (steps([], {**METASPACE, "prepend_scheme": "last"}), "'prepend_scheme': 'last'"),
    "spaces as they are": (replaced(normalizer=None), "don't say what spaces become"),
    "two prefixes": (replaced(pre_tokenizer={**METASPACE, "prepend_scheme": "always"}), "both put a space"),
    "spaces half merged": (steps([MERGED[1], ESCAPE]), "don't say what spaces become"),
    "a step that is text": (steps(["x"]), "normalizer"),  # type: ignore[list-item]
    "whitespace split": (replaced(pre_tokenizer={"type": "Whitespace"}), "'Whitespace'"),
    "whole words": (in_model(ignore_merges=True), "ignore_merges is true"),
    "ends of words": (in_model(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
    "a mark of parts": (in_model(continuing_subword_prefix="##"), "continuing_subword_prefix is '##'"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_step_that_is_not_known_is_refused_by_name(name: str, tmp_path: Path) -> None:
    edit, expected = STRANGE[name]
    folder = sentencepiece_json(tmp_path / "source", edit)
    with refusal(CheckpointError, expected, folder / "tokenizer.json"):
        read(folder)


def test_a_token_that_is_found_as_a_single_word_alone_is_refused(tmp_path: Path) -> None:
    folder = sentencepiece_json(tmp_path / "source", FORMS["Prepend"], single_word=True)
    with refusal(CheckpointError, r"'<tool>' .* \(single_word\)", folder / "tokenizer.json"):
        read(folder)


def test_a_byte_level_vocabulary_keeps_its_tokens_texts_and_kinds(tmp_path: Path) -> None:
    """DeepSeek-R1-Distill-Llama's: U+2581 is no space here, and what is not special is no control token."""
    names = ("<｜tool▁calls▁begin｜>", "<|tool_call|>", "<think>")
    tokenizer = vocabularies.llama3_tokenizer()
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens(list(names))
    copy.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_folder(tmp_path, {"vocab_size": copy.get_vocab_size()})
    for text in names:
        assert vocabulary.types[vocabulary.tokens.index(text)] == TokenType.USER_DEFINED
    assert vocabulary.types[vocabulary.tokens.index("<|eot_id|>")] == TokenType.CONTROL


@pytest.mark.parametrize("n_vocab", [32016, 1010])
def test_infill_tokens_are_told_by_their_texts(n_vocab: int, tmp_path: Path) -> None:
    def infill(content: dict[str, Any]) -> None:
        plain = content["added_tokens"][0]
        texts = [f"▁<{name}>" for name in ("PRE", "SUF", "MID", "EOT")]
        content["added_tokens"] += [plain | {"id": 1001 + at, "content": text} for at, text in enumerate(texts)]

    for edit, expected in ((infill, {"prefix": 1001, "suffix": 1002, "middle": 1003, "eot": 1004}), (lambda _: 0, {})):
        folder = sentencepiece_json(tmp_path / str(len(expected)), edit)
        special = read_folder(folder, {"vocab_size": n_vocab}).special
        assert {kind: special[kind] for kind in special.keys() & {"prefix", "suffix", "middle", "eot"}} == expected


def test_whether_a_bos_is_added_is_not_told_by_the_vocabularys_size(tmp_path: Path) -> None:
    tokenizer = vocabularies.llama3_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_folder(tmp_path, {"vocab_size": 49152}).add["bos"]
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}), "utf-8")
    assert not read_folder(tmp_path, {"vocab_size": 49153}).add["bos"]
