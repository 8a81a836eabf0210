"""tokenizer.json and tokenizer.model at work: the same ids and bytes as llama.cpp's tokenizer for the same model."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import pytest
from refusals import refusal
from texts import CONVERSATIONS, TORTURE
from tokenizer_files import artifact
from vocabularies import LLAMA2_TEMPLATE, LLAMA3_TEMPLATE

import converters
import edge_llama
from edge_llama.errors import ArtifactError, OptionError
from edge_llama.prompts.hf_tokenizer import HFTokenizer

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama2": checkpoints.llama2,
    "llama3": checkpoints.llama3,
    "smollm": checkpoints.smollm,
    "llama4": llama4.scout,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, HFTokenizer]]:
    """llama.cpp's tokenizer of the converted checkpoint, and the checkpoint's own."""
    folder = tmp_path_factory.mktemp(request.param)
    source = MAKERS[request.param](folder / "source")
    converters.convert(source, folder / "a.gguf", quant="f16", tower="text")
    with edge_llama.open(folder / "a.gguf", n_ctx=64, threads=1) as model:
        yield model.tokenizer, HFTokenizer(artifact(source))


def test_ids_of_every_text_are_llama_cpps(pair: tuple[Any, HFTokenizer]) -> None:
    theirs, ours = pair
    contents = [message["content"] for messages in CONVERSATIONS for message in messages]
    for text in (*TORTURE, *contents, "\n".join(TORTURE)):
        assert ours.encode(text) == theirs.encode(text), text
        assert ours._continue(text) == theirs._continue(text), text


def test_the_built_in_models_real_vocabulary_is_the_same(model: edge_llama.Model, smollm2: Path) -> None:
    ours = HFTokenizer(artifact(smollm2))
    missing = model.tokenizer._missing_bytes
    assert ours._missing_bytes == missing
    for text in TORTURE:
        if not any(byte in missing for byte in text.encode()):
            assert ours.encode(text) == model.tokenizer.encode(text), text
    assert [*map(ours.piece, range(ours.n_vocab))] == [*map(model.tokenizer.piece, range(ours.n_vocab))]
    assert dict(ours.control_tokens) == dict(model.tokenizer.control_tokens)


def test_every_token_has_the_same_bytes(pair: tuple[Any, HFTokenizer]) -> None:
    theirs, ours = pair
    assert ours.n_vocab == theirs.n_vocab
    for token in range(ours.n_vocab):
        assert ours.piece(token) == theirs.piece(token), token


def test_control_tokens_and_borders_are_the_same(pair: tuple[Any, HFTokenizer]) -> None:
    theirs, ours = pair
    assert dict(ours.control_tokens) | {"<unk>": 0} == dict(theirs.control_tokens) | {"<unk>": 0}
    for template in (LLAMA2_TEMPLATE, LLAMA3_TEMPLATE):
        assert set(ours.control_tokens_of(template)) - {"<unk>"} == set(theirs.control_tokens_of(template)) - {"<unk>"}
    assert ours.bos == theirs.bos
    assert ours.least_tokens("a" * 1000) == theirs.least_tokens("a" * 1000)
    for name in ("bos_token", "eos_token"):
        assert ours.special_texts.get(name) == theirs.special_texts.get(name)


def test_no_text_becomes_a_control_token(pair: tuple[Any, HFTokenizer]) -> None:
    _, ours = pair
    control = ours.control_tokens
    for text in control:
        ids = ours.encode(f"a{text}b {text}")
        assert set(ids).isdisjoint(control.values()), text
        assert b"".join(map(ours.piece, ids)).decode().removeprefix(" ") == f"a{text}b {text}"


def test_a_tag_that_was_added_as_a_plain_token_is_not_formed_either(tmp_path: Path) -> None:
    source = checkpoints.smollm(tmp_path / "source")
    path = source / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    for entry in content["added_tokens"]:
        entry["special"] = False
    path.write_text(json.dumps(content), "utf-8")
    ours = HFTokenizer(artifact(source))
    assert {"<|im_start|>", "<|im_end|>"} <= set(ours.control_tokens)
    ids = ours.encode("<|im_start|>system")
    assert set(ids).isdisjoint(ours.control_tokens.values())
    assert b"".join(map(ours.piece, ids)) == b"<|im_start|>system"


def test_tokenizer_model_alone_gives_the_same(llama2: Path) -> None:
    whole, alone = HFTokenizer(artifact(llama2)), HFTokenizer(artifact(llama2, "tokenizer.model"))
    for text in TORTURE:
        assert alone.encode(text) == whole.encode(text), text
        assert alone._continue(text) == whole._continue(text), text
    assert [*map(alone.piece, range(alone.n_vocab))] == [*map(whole.piece, range(whole.n_vocab))]
    assert (alone.bos, alone.control_tokens) == (whole.bos, whole.control_tokens)


def test_a_character_that_the_vocabulary_lacks_is_named(tmp_path: Path) -> None:
    source = checkpoints.smollm(tmp_path / "source")
    path = source / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocab = content["model"]["vocab"]
    vocab["unused"] = vocab.pop("þ")  # the letter for byte 0xFE, which no text in UTF-8 has
    vocab["unused too"] = vocab.pop("!")
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "!" not in "".join(pair)]
    content["model"]["vocab"] = {text: token for text, token in vocab.items() if len(text) == 1 or "!" not in text}
    path.write_text(json.dumps(content), "utf-8")
    ours = HFTokenizer(artifact(source))
    assert ours.encode("Hello")
    with refusal(OptionError, "can't express the character '!'"):
        ours.encode("Hello!")


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content), "utf-8")

    return edit


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "tokenizers refuses it"),
    "no JSON": (lambda path: path.write_bytes(b"\x00\xff"), "tokenizers refuses it"),
    "a list": (lambda path: path.write_text("[]"), "tokenizers refuses it"),
    "nested without end": (lambda path: path.write_text("[" * 100_000), "tokenizers refuses it"),
    "no model": (edited(lambda content: content.pop("model")), "tokenizers refuses it"),
    "another model": (
        edited(lambda content: content.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})),
        "a tokenizer of the kind WordLevel",
    ),
    "an id beyond": (edited(lambda content: content["model"]["vocab"].update(x=10**6)), "a token 1,000,000, the model"),
    "an id that is none": (edited(lambda content: content["model"]["vocab"].update(x="1")), "tokenizers refuses it"),
    "neither kind": (edited(lambda content: content.update(pre_tokenizer=None, decoder=None)), "BPE .no steps"),
    "odd merges": (edited(lambda content: content["model"].update(merges=[["no", "such"]])), "tokenizers refuses it"),
    "odd steps": (edited(lambda content: content.update(normalizer={"type": "?"})), "tokenizers refuses it"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_tokenizer_is_told_by_its_field(name: str, llama3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama3, tmp_path / "copy"))
    damage, expected = BAD[name]
    damage(folder / "tokenizer.json")
    with refusal(ArtifactError, expected, folder / "tokenizer.json"):
        HFTokenizer(artifact(folder))


def test_a_damaged_tokenizer_model_is_told(llama2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama2, tmp_path / "copy"))
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff" * 100)
    with refusal(ArtifactError, "sentencepiece refuses it", folder):
        HFTokenizer(artifact(folder, "tokenizer.model"))
