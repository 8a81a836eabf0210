"""A tokenizer's files in a folder without a model: what is read of them, and what is wrong with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edge_llama
from edge_llama import ArtifactError
from edge_llama.files.tokenizer_folder import has_tokenizer, read_tokenizer_folder
from edge_llama.prompts.hf_tokenizer import HFTokenizer
from edge_llama.remote.vocabulary import open_vocabulary

TEXT = "Hello, world! naïve 日本語 🦙\n\n  <|im_end|> 12345"


def copied(source: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for name in names or [file.name for file in source.iterdir() if file.suffix in (".json", ".jinja", ".model")]:
        shutil.copy(source / name, target / name)
    return target


def test_a_checkpoints_folder_and_a_gguf_file_of_it_are_the_same_vocabulary(smollm2: Path, converted: Path) -> None:
    folder, file = open_vocabulary(smollm2), open_vocabulary(converted)
    assert folder.tokenizer.n_vocab == file.tokenizer.n_vocab
    assert folder.tokenizer.control_tokens == file.tokenizer.control_tokens
    assert folder.tokenizer.encode(TEXT) == file.tokenizer.encode(TEXT)
    assert folder.chat_template == file.chat_template
    ends = [token for token in range(folder.tokenizer.n_vocab) if folder.tokenizer.is_end(token)]
    assert [token for token in ends if file.tokenizer.is_end(token)] == ends
    assert ends


def test_no_weights_are_read_of_a_file(converted: Path, model: edge_llama.Model) -> None:
    vocabulary = open_vocabulary(converted)
    assert vocabulary.tokenizer.encode(TEXT) == model.tokenizer.encode(TEXT)
    assert vocabulary.tokenizer.frame == model.tokenizer.frame
    assert vocabulary.sampling == model.artifact.sampling


def test_an_onnx_folder_has_one_too(onnx_folder: Path) -> None:
    vocabulary = open_vocabulary(onnx_folder)
    assert vocabulary.tokenizer.encode(TEXT)
    assert vocabulary.path.suffix == ".onnx"


def test_a_folder_with_a_tokenizer_alone_is_enough(smollm2: Path, tmp_path: Path) -> None:
    folder = copied(smollm2, tmp_path / "alone", "tokenizer.json", "tokenizer_config.json")
    assert has_tokenizer(folder)
    read = read_tokenizer_folder(folder)
    whole, alone = HFTokenizer(read_tokenizer_folder(smollm2)), HFTokenizer(read)
    assert alone.n_vocab <= whole.n_vocab
    assert alone.encode(TEXT) == whole.encode(TEXT)
    assert (read.ends, read.sampling) == (frozenset(), ())
    opened = open_vocabulary(folder).tokenizer
    assert opened.is_end(opened.control_tokens["<|im_end|>"])  # tokenizer_config.json's
    edited(folder, "tokenizer_config.json", eos_token=None)
    with pytest.raises(ArtifactError, match="no file names a token that ends an answer"):
        open_vocabulary(folder)


def test_sentencepieces_file_is_enough(llama2: Path, tmp_path: Path) -> None:
    folder = copied(llama2, tmp_path / "alone", "tokenizer.model", "tokenizer_config.json")
    read = read_tokenizer_folder(folder)
    whole = HFTokenizer(read_tokenizer_folder(llama2))
    assert HFTokenizer(read).encode("Hello") == whole.encode("Hello")


def edited(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}), "utf-8")


def test_what_ends_an_answer_is_where_it_is_written(smollm2: Path, tmp_path: Path) -> None:
    folder = copied(smollm2, tmp_path / "copy")
    edited(folder, "generation_config.json", eos_token_id=[0, 2], temperature=0.5, top_k=7)
    edited(folder, "config.json", eos_token_id=5)
    read = read_tokenizer_folder(folder)
    assert read.ends == {0, 2, 5}
    assert [(each.option, each.value) for each in read.sampling] == [("temperature", 0.5), ("top_k", 7)]
    edited(folder, "config.json", text_config={"vocab_size": 60_000}, vocab_size=None)
    assert read_tokenizer_folder(folder).n_vocab == 60_000


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"vocab_size": "many"}, "vocab_size is 'many', expected a whole number"),
        ("config.json", {"vocab_size": 5}, "the model knows 0 to 4"),
        ("config.json", {"vocab_size": 0}, "vocab_size is 0, expected 1 to"),
        ("config.json", {"eos_token_id": -1}, "eos_token_id has -1, expected token ids"),
        ("generation_config.json", {"eos_token_id": ["x"]}, "eos_token_id has 'x', expected token ids"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template is 5, expected a text"),
    ],
)
def test_what_is_wrong_is_named(smollm2: Path, tmp_path: Path, name: str, fields: dict[str, Any], message: str) -> None:
    folder = copied(smollm2, tmp_path / "copy")
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    edited(folder, name, **fields)
    with pytest.raises(ArtifactError, match=message):
        open_vocabulary(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_file_is_named(smollm2: Path, tmp_path: Path, name: str) -> None:
    folder = copied(smollm2, tmp_path / "copy")
    (folder / name).write_text("{")
    with pytest.raises(ArtifactError, match=name):
        open_vocabulary(folder)


def test_a_folder_without_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected exactly one text model"):
        open_vocabulary(tmp_path)


def test_a_file_of_another_hand_is_tried_in_a_child(small_talk: Path, tmp_path: Path) -> None:
    """One that we did not write: llama.cpp ends the process on some vocabularies."""
    from ggufs import rewritten  # noqa: PLC0415

    strange = tmp_path / "strange.gguf"
    rewritten(small_talk, strange, fields={"edge_llama.sha256": None})
    assert open_vocabulary(strange).tokenizer.encode(TEXT) == open_vocabulary(small_talk).tokenizer.encode(TEXT)
