"""The files in which facts stand, damaged or against each other: an error that names file, field and value."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from refusals import refusal
from variants import edit_json

from converters.sources import open_checkpoint
from edge_llama import CheckpointError

SHAPE = checkpoints.Shape(hidden=32, ffn=32, layers=1, heads=2, kv_heads=2)
JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "processor_config.json", "chat_template.json"),
)
DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "a list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "no UTF-8": lambda content: b'{"a": "\xff"}',
    "nested deeply": lambda content: b'{"a": ' + b"[" * 100_000,
    "a pointer to Git LFS": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all these files, and nothing wrong in them."""
    folder = checkpoints.llama3(tmp_path_factory.mktemp("bad") / "whole", shape=SHAPE, template_file=True)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    checkpoints.write_json(folder / "special_tokens_map.json", eos_token="<|eot_id|>")
    checkpoints.write_json(folder / "added_tokens.json")
    checkpoints.write_json(folder / "processor_config.json", chat_template="x")
    checkpoints.write_json(folder / "chat_template.json", chat_template="x")
    assert open_checkpoint(folder).vocabulary.chat_templates.keys() == {"default", "tool_use"}
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.mark.parametrize("file", JSON_FILES)
def test_a_damaged_file_is_named(file: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    for name, damage in DAMAGES.items():
        (folder / file).write_bytes(damage(content))
        with refusal(CheckpointError, re.escape(file), folder):
            open_checkpoint(folder)
            pytest.fail(f"{file}: {name}")


@pytest.mark.parametrize("file", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "the file is empty"), (b" \n", "the file is empty"), (b"\xff\xfe{{", "cannot be read")],
)
def test_a_damaged_template_is_named(file: str, content: bytes, expected: str, folder: Path) -> None:
    (folder / file).write_bytes(content)
    with refusal(CheckpointError, f"{re.escape(file)}: {expected}", folder):
        open_checkpoint(folder)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("special_tokens_map.json", {"eos_token": 3}, "special_tokens_map.json: eos_token is 3, expected"),
    ("special_tokens_map.json", {"eos_token": {"special": True}}, "eos_token.content is missing"),
    ("special_tokens_map.json", {"additional_special_tokens": "x"}, "additional_special_tokens is 'x', expected"),
    ("tokenizer_config.json", {"extra_special_tokens": [3]}, "extra_special_tokens[0] is 3, expected"),
    ("tokenizer_config.json", {"extra_special_tokens": {"image": 3}}, "extra_special_tokens['image'] is 3, expected"),
    ("tokenizer_config.json", {"chat_template": 3}, "tokenizer_config.json: chat_template is 3, expected"),
    ("tokenizer_config.json", {"chat_template": {"default": 3}}, "chat_template['default'] is 3, expected"),
    ("tokenizer_config.json", {"chat_template": [{"name": 3}]}, "chat_template[0].name is 3, expected"),
    ("processor_config.json", {"chat_template": 3}, "processor_config.json: chat_template is 3, expected"),
    ("chat_template.json", {"chat_template": [3]}, "chat_template.json: chat_template[0] is 3, expected"),
    ("added_tokens.json", {"<x>": "7"}, "added_tokens.json: token '<x>' has id '7', expected a number"),
    ("added_tokens.json", {"<x>": [7]}, "added_tokens.json: token '<x>' has id [7], expected a number"),
    ("added_tokens.json", {"<x>": 10**9}, "token '<x>' has id 1000000000, the embedding has"),
    ("added_tokens.json", {"<x>": -1}, "token '<x>' has id -1, the embedding has"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<x>"}}}, "token '<x>' has id 'x', expected"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "<x>"}}}, "'<x>' has id '-1', expected"),
    ("generation_config.json", {"eos_token_id": "2"}, "generation_config.json: eos_token_id has '2', expected ids"),
    ("generation_config.json", {"eos_token_id": [[2]]}, "generation_config.json: eos_token_id has [2], expected ids"),
    ("generation_config.json", {"eos_token_id": {"a": 2}}, "eos_token_id has {'a': 2}, expected ids"),
    ("generation_config.json", {"top_k": 50.5}, "generation_config.json: top_k is 50.5, expected a whole number"),
    ("generation_config.json", {"temperature": "0.6"}, "temperature is '0.6', expected a number"),
    ("generation_config.json", {"min_p": True}, "min_p is True, expected a number"),
    ("generation_config.json", {"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
    ("config.json", {"eos_token_id": "2"}, "config.json: eos_token_id has '2', expected ids"),
    ("config.json", {"text_config": {"eos_token_id": True}}, "text_config.eos_token_id has True, expected ids"),
    ("config.json", {"transformers_weights": ["x"]}, "transformers_weights is ['x'], expected"),
]


@pytest.mark.parametrize(("file", "changes", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_a_value_of_a_wrong_type_is_named(file: str, changes: dict[str, Any], expected: str, folder: Path) -> None:
    edit_json(folder / file, **changes)
    with refusal(CheckpointError, re.escape(expected), folder):
        open_checkpoint(folder)


def test_what_two_files_say_against_each_other_is_told_and_no_error(folder: Path) -> None:
    edit_json(
        folder / "tokenizer_config.json", chat_template="STALE", bos_token="<|end_of_text|>", eos_token="<|eom_id|>"
    )
    edit_json(folder / "special_tokens_map.json", bos_token={"content": "<|begin_of_text|>"})
    edit_json(folder / "added_tokens.json", **{"<|eot_id|>": 0, "<x>": 1})
    edit_json(folder / "config.json", eos_token_id=3, dtype="float16")
    edit_json(folder / "generation_config.json", eos_token_id=[4, -1], top_k=50.0)
    read = open_checkpoint(folder)
    assert read.vocabulary.tokens[read.vocabulary.special["bos"]] == "<|begin_of_text|>"
    assert read.vocabulary.tokens[read.vocabulary.special["eos"]] == "<|eot_id|>"
    topics = {"chat template", "bos_token", "eos_token", "added tokens", "end tokens", "dtype", "sampling"}
    assert topics <= read.notes.keys()
    assert read.generation["eos_token_id"] == [4]
    assert "'<|eot_id|>' as 0; added_tokens.json: '<x>' as 1" in read.notes["added tokens"]
    json.dumps(dict(read.notes))
