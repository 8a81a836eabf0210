"""The last step of a plan: source and output make the same tokens of a page of text and a chat, or it is refused."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkpoints
import family_tokenizers
import meta_folders
import pytest
from engine_source import ENGINE, unpacked
from parity_differences import deepseek_r1, pieces_of_the_user, saved_by_transformers_5
from refusals import refusal
from tokenizers import Tokenizer
from variants import without_model_file

import converters
from converters.metadata.vocabulary import from_gguf
from converters.tokenizers.proof import PAGE, texts_for
from converters.tokenizers.reader import read_folder
from converters.tokenizers.source_encoders import source_encoder
from converters.tokenizers.writer import write_files
from edge_llama import convert
from edge_llama.backends.llama_cpp.vocabulary_probe import encode
from edge_llama.errors import ArtifactError, CheckpointError
from edge_llama.files.gguf import ValueType, array, encode_header, read_header, string

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama2": checkpoints.llama2,
    "llama2 by json": without_model_file,
    "llama3": checkpoints.llama3,
    "smollm": checkpoints.smollm,
    "Meta's llama2": meta_folders.llama2,
    "Meta's llama3": meta_folders.llama3,
    "pieces of the user": pieces_of_the_user,
    "DeepSeek-R1": deepseek_r1,
    "saved by transformers 5": saved_by_transformers_5,
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_written_is_proved_before_it_is(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "source")
    for to in ("gguf", "onnx"):
        assert "become the source's own tokens" in convert.plan(source, tmp_path / to, to=to).notes["tokenizer"]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_pair_of_files_from_before_tokenizer_json_is_proved(tmp_path: Path) -> None:
    source = checkpoints.smollm(tmp_path / "source")
    model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    for to in ("gguf", "onnx"):
        assert "become the source's own tokens" in convert.plan(source, tmp_path / to, to=to).notes["tokenizer"]


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_other_files_add_are_part_of_the_sources_tokenizer(*, special: bool, tmp_path: Path) -> None:
    """tokenizer_config.json lists one that tokenizer.json lacks, and says of another that it is special."""
    source = checkpoints.llama3(tmp_path / "source", padding=1)
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    last = content["added_tokens"][-1]
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    settings["added_tokens_decoder"] = {
        str(last["id"]): {**flags, "content": last["content"], "special": True},
        str(last["id"] + 1): {**flags, "content": "<mark>", "special": special},
    }
    settings["chat_template"] += "<mark>" + last["content"]
    last["special"] = False
    (source / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    (source / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    for to in ("gguf", "onnx"):
        assert "become the source's own tokens" in convert.plan(source, tmp_path / to, to=to).notes["tokenizer"]


def test_a_file_cut_in_parts_is_proved_by_its_first(llama3: Path, tmp_path: Path) -> None:
    planned = convert.plan(llama3, tmp_path / "a.gguf", max_shard_bytes=100_000)
    assert len({tensor.file for tensor in planned.tensors}) > 1
    assert "become the source's own tokens" in planned.notes["tokenizer"]


def test_a_gguf_source_is_kept_as_it_is_or_compared(llama3: Path, tmp_path: Path) -> None:
    converters.convert(llama3, tmp_path / "a.gguf", quant="f16")
    assert (
        convert.plan(tmp_path / "a.gguf", tmp_path / "b.gguf").notes["tokenizer"] == "the source's own, kept as it is"
    )
    notes = convert.plan(tmp_path / "a.gguf", tmp_path / "b", to="safetensors").notes
    assert "become the source's own tokens" in notes["tokenizer"]


def without_merges_of(text: str, folder: Path) -> Path:
    """A tokenizer that never makes this token of its parts, which llama.cpp would, whatever the merges are."""
    without_model_file(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    merges = content["model"]["merges"]
    content["model"]["merges"] = [pair for pair in merges if "".join(pair) != text]
    assert len(content["model"]["merges"]) < len(merges)
    path.write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize("to", ["gguf", "onnx"])
def test_the_first_text_that_would_become_other_tokens_is_named_with_both(to: str, tmp_path: Path) -> None:
    source = without_merges_of("or", tmp_path / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    token = tokenizer.token_to_id("or")
    expected = (
        rf"the text '.*or.*' would become other tokens .* from token \d+ on \[\d.*\] by .* but \[.*{token}.*\] by"
    )
    with refusal(CheckpointError, expected, source / "tokenizer.json"):
        convert.convert(source, tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_other_programs_do_not_read_is_told(tmp_path: Path) -> None:
    """As transformers 5 saves a Llama 2: a space before the first text alone."""
    source = without_model_file(tmp_path / "source")
    path = source / "tokenizer.json"
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content = json.loads(path.read_text("utf-8")) | {"normalizer": None, "pre_tokenizer": step}
    path.write_text(json.dumps(content), "utf-8")
    for to, told in (
        ("gguf", "in edge-llama alone, which reads edge_llama.tokenizer.space_prefix"),
        ("onnx", "tokens"),
    ):
        assert convert.plan(source, tmp_path / to, to=to).notes["tokenizer"].endswith(told)
    converters.convert(source, tmp_path / "a.gguf", quant="q8_0")
    fields = read_header(tmp_path / "a.gguf").fields
    assert fields["edge_llama.tokenizer.space_prefix"].data == "metaspace_first"
    assert fields["tokenizer.ggml.add_space_prefix"].data is False
    converters.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q4_0")
    assert read_header(tmp_path / "b.gguf").fields["edge_llama.tokenizer.space_prefix"].data == "metaspace_first"


def test_without_an_engine_the_report_says_so(llama3: Path, tmp_path: Path) -> None:
    def nobody(vocabulary: bytes, texts: Sequence[str], turns: Sequence[tuple[str, str]]) -> str:
        assert vocabulary[:4] == b"GGUF"
        assert len(texts) > len(turns) > 0
        return "nobody is here"

    planned = converters.plan(llama3, tmp_path / "a.gguf", encode_gguf=nobody)
    assert planned.checkpoint.notes["tokenizer"] == "not checked: nobody is here"
    assert "tokenizer" not in converters.plan(llama3, tmp_path / "a.gguf").checkpoint.notes


def test_a_vision_tower_has_no_tokenizer_to_prove(llama4_scout: Path, tmp_path: Path) -> None:
    assert "tokenizer" not in convert.plan(llama4_scout, tmp_path / "a.gguf", tower="vision").notes


def test_a_word_that_no_merge_makes_is_tried(tmp_path: Path) -> None:
    """llama.cpp takes no word whole by this splitting rule."""
    source = checkpoints.smollm(tmp_path / "source")
    path = source / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    model = content["model"]
    word = max((text for text in model["vocab"] if text.isascii() and text.isalpha()), key=len)
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != word]
    model["ignore_merges"] = True
    path.write_text(json.dumps(content), "utf-8")
    with refusal(CheckpointError, f"the text '{word}' would become other tokens"):
        convert.plan(source, tmp_path / "a.gguf")


def test_added_tokens_of_an_older_file_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    source = without_model_file(tmp_path / "source")
    path = source / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    for entry in content["added_tokens"]:
        entry["normalized"] = True
    path.write_text(json.dumps(content), "utf-8")
    assert "become the source's own tokens" in convert.plan(source, tmp_path / "a.gguf").notes["tokenizer"]


def vocabulary(**fields: Any) -> bytes:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    given = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [2, 3, 3] + [6] * 256 + [1, 1]),
    }
    return encode_header(given | fields, [])[0]


def test_a_vocabulary_is_read_by_a_child_that_may_die() -> None:
    assert encode(vocabulary(), ["a", "é"], []) == ([[259, 260], [259, 198, 172]], None)
    twice = array(ValueType.STRING, ["a"] * 261)
    with refusal(ArtifactError, "llama.cpp cannot read the vocabulary: a process of its own died of signal"):
        encode(vocabulary(**{"tokenizer.ggml.tokens": twice}), ["a"], [])
    with refusal(ArtifactError, "llama.cpp refuses the vocabulary"):
        encode(vocabulary(**{"tokenizer.ggml.model": string("gpt2")}), ["a"], [])


FAMILIES = {"qwen2": family_tokenizers.qwen, "llama-bpe": family_tokenizers.smollm3}


@pytest.mark.parametrize("pre", FAMILIES)
def test_tokenizers_of_other_families_are_read_and_written(pre: str, tmp_path: Path) -> None:
    """From a tokenizer.json and back to one: the same steps, the same ids."""
    original = FAMILIES[pre]()
    original.save(str(tmp_path / "tokenizer.json"))
    read = read_folder(tmp_path, {"vocab_size": original.get_vocab_size()})
    assert read.pre == pre
    content = write_files(read, tmp_path)["tokenizer.json"]
    back = Tokenizer.from_str(json.dumps(content))
    for text in texts_for(read):
        assert back.encode(text, add_special_tokens=False).ids == original.encode(text, add_special_tokens=False).ids


REAL = ("llama-spm", "qwen2", "gpt-2")  # Llama 3's: test_meta_vocabulary.py


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_become_files_that_tokenize_as_llama_cpp_expects(name: str, tmp_path: Path) -> None:
    """llama.cpp's vocabularies of Llama 2, Qwen 2 and GPT-2, with its own texts and ids."""
    path = unpacked(version(ENGINE)) / "models" / f"ggml-vocab-{name}.gguf"
    found = from_gguf(read_header(path))
    for file, content in write_files(found, path).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / file).write_bytes(data)
    texts = path.with_name(f"{path.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    expected = path.with_name(f"{path.name}.out").read_text("utf-8").split("\n")
    read = read_folder(tmp_path, {"vocab_size": len(found.tokens)})
    assert (read.pre, list(read.types)) == (found.pre, list(found.types))
    encoder = source_encoder(read)
    assert encoder is not None
    for text, ids in zip(texts, expected, strict=False):
        assert encoder.plain(text) == [int(token) for token in ids.split()], text
    assert len(texts) > len(PAGE)
