"""Fields of a checkpoint's JSON files, one edited at a time: a plan or a typed error, in seconds and little memory.

The files that people download are made by many tools. Whatever stands in them, nobody may see a traceback.
"""

import copy
import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import numpy as np
import pytest
import variants
from refusals import refusal

import converters
from converters.tokenizers.pre_tokenizers import LLAMA3_REGEX, LLAMA4_REGEX, pre_tokenizer_name
from edge_llama import EdgeLlamaError
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Value, ValueType, array, encode_header, string, u32

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json", "tokenizer.json")
_REMOVE = object()
VALUES = [
    *(None, -1, 0, 1.5, True, 2**31, 2**40, 10**30, 1e200, 1e-200, float("nan")),
    *("x", "", "\ud800", [], {}, [None], [[1]], {"a": 1}, _REMOVE),
]
_SAMPLE = 200  # edits of a folder in one run: seconds
_Path = tuple[str | int, ...]


@pytest.fixture(scope="module")
def folders(llama2: Path, llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small checkpoints, one per way of reading a vocabulary."""
    root = tmp_path_factory.mktemp("fields")
    found = {name: root / name for name in ("llama2", "llama2 by json", "llama3", "smollm", "llama4")}
    shutil.copytree(llama2, found["llama2"])
    _write(found["llama2"] / "added_tokens.json", {"<extra>": 10})
    shutil.copytree(llama2, found["llama2 by json"])
    (found["llama2 by json"] / "tokenizer.model").unlink()
    shutil.copytree(llama3, found["llama3"])
    checkpoints.smollm(found["smollm"])
    llama4.scout(found["llama4"])
    return found


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _fields(content: Any, path: _Path = ()) -> Iterator[_Path]:
    """The paths of all fields; of long lists and objects the first few items stand for the rest."""
    if path:
        yield path
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    for key in keys[:3] if len(keys) > 40 or isinstance(content, list) else keys:
        yield from _fields(content[key], (*path, key))


def _edited(content: Any, path: _Path, value: Any) -> Any:
    edited = copy.deepcopy(content)
    inner = edited
    for key in path[:-1]:
        inner = inner[key]
    if value is _REMOVE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return edited


@pytest.mark.parametrize(
    ("name", "sample"),
    [("llama2", _SAMPLE), ("llama2 by json", _SAMPLE), ("llama3", _SAMPLE), ("smollm", _SAMPLE), ("llama4", 80)],
)
def test_an_edited_field_is_planned_or_refused(
    name: str, sample: int, folders: dict[str, Path], rng: np.random.Generator, tmp_path: Path
) -> None:
    files = [folders[name] / file for file in FILES if (folders[name] / file).is_file()]
    contents = {file: json.loads(file.read_text()) for file in files}
    edits = [(file, path, value) for file in files for path in _fields(contents[file]) for value in VALUES]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in rng.choice(len(edits), min(sample, len(edits)), replace=False):
        file, path, value = edits[at]
        _write(file, _edited(contents[file], path, value))
        _check_plans(folders[name], tmp_path, f"{file.name}: {path} = {value!r}")
        _write(file, contents[file])
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth * (1 if sys.platform == "darwin" else 1024) < 500e6


def _check_plans(folder: Path, tmp_path: Path, edit: str) -> None:
    for output, to in ((tmp_path / "x.gguf", "gguf"), (tmp_path / "x", "safetensors")):
        start = time.process_time()  # of this process alone: others share the cores
        try:
            converters.plan(folder, output, to=to)
        except EdgeLlamaError as error:
            str(error).encode()  # may be printed
        except Exception as error:
            pytest.fail(f"{edit}: {error!r}")
        assert time.process_time() - start < 5, edit


EDITS: dict[str, tuple[str, str, _Path, Any, str]] = {
    "a vocabulary for terabytes": ("llama3", "config.json", ("vocab_size",), 2**40, "vocab_size"),
    "heads for terabytes": ("llama3", "config.json", ("head_dim",), 2**40, "head_dim"),
    "heads for gigabytes": ("llama3", "config.json", ("head_dim",), 2**31, "q_proj"),
    "a context beyond 32 bits": ("llama3", "config.json", ("max_position_embeddings",), 2**40, "max_position"),
    "a base beyond float32": ("llama3", "config.json", ("rope_parameters", "rope_theta"), 1e200, "rope_theta"),
    "half a character": ("llama3", "tokenizer_config.json", ("chat_template",), "a\ud800", "valid Unicode"),
    "half a character as a token": ("llama3", "tokenizer.json", ("added_tokens", 0, "content"), "\ud800", "Unicode"),
    "half a character as a name": ("llama3", "config.json", ("model_type",), "\ud800", "config.json holds"),
    "top_k beyond 32 bits": ("llama3", "generation_config.json", ("top_k",), 2**40, "top_k"),
    "temperature that is no number": (
        "llama3",
        "generation_config.json",
        ("temperature",),
        float("nan"),
        "temperature",
    ),
    "an added token without an id": ("smollm", "tokenizer.json", ("added_tokens", 1, "id"), None, "added_tokens[1].id"),
    "a step that is text": ("llama3", "tokenizer.json", ("post_processor",), "x", "post_processor"),
    "no vocabulary": ("smollm", "tokenizer.json", ("model",), None, "model is missing"),
    "a merge of three": ("smollm", "tokenizer.json", ("model", "merges", 0), ["a", "b", "c"], "merges[0]"),
    "a flag that is text": ("llama2", "tokenizer_config.json", ("add_bos_token",), "no", "add_bos_token"),
    "an id that is no number": (
        "llama2",
        "tokenizer_config.json",
        ("added_tokens_decoder",),
        {"x": {"content": "y"}},
        "id",
    ),
    "a merge of what is no token": ("llama3", "tokenizer.json", ("model", "merges", 0), ["qq", "zz"], "merge 'qq zz'"),
    "the same in a sentencepiece vocabulary": (
        "llama2 by json",
        "tokenizer.json",
        ("model", "merges", 0),
        ["qq", "zz"],
        "merge 'qq zz'",
    ),
    "an added token with a word's id": ("llama3", "tokenizer.json", ("added_tokens", 0, "id"), 5, "share the id 5"),
    "two added tokens with one id": ("llama3", "tokenizer.json", ("added_tokens", 1, "id"), 1000, "share the id"),
    "two words with one id": ("llama3", "tokenizer.json", ("model", "vocab", '"'), 5, "share the id 5"),
    "one text with two ids": (
        "llama3",
        "tokenizer.json",
        ("added_tokens", 0, "content"),
        "!",
        "token '!' the ids 0 and",
    ),
    "a token past the embedding": ("llama2 by json", "tokenizer.json", ("added_tokens", 0, "id"), 2**40, "rows"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_bad_field_is_named(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    which, file, path, value, expected = EDITS[name]
    target = folders[which] / file
    text = target.read_text()
    _write(target, _edited(json.loads(text), path, value))
    to = "safetensors" if "config.json holds" in expected else "gguf"
    try:
        with refusal(CheckpointError, re.escape(expected), folders[which]):
            converters.plan(folders[which], tmp_path / "x.gguf", to=to)
    finally:
        target.write_text(text)


@pytest.mark.parametrize(
    "value",
    [u32(2**40), u32(-1), string("\ud800"), array(ValueType.STRING, ["\ud800"]), Value(ValueType.FLOAT32, 1e200)],
)
def test_a_value_that_gguf_cannot_hold_is_named(value: Value) -> None:
    with pytest.raises(ValueError, match=r"a\.key is "):
        encode_header({"a.key": value}, [])


def test_a_missing_sentencepiece_is_told_how_to_install(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError, match="sentencepiece") as raised:
        converters.plan(folders["llama2"], tmp_path / "x.gguf")
    assert 'pip install "edge-llama[convert]"' in raised.value.remedy


SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = [SPLIT, {**BYTES, "use_regex": False}]
LLAMA4 = [{**SPLIT, "pattern": {"Regex": LLAMA4_REGEX}}, LLAMA3[1]]
PUBLISHED: dict[str, tuple[list[Any], bool, str]] = {
    "Llama 3": (LLAMA3, True, "llama-bpe"),
    "Llama 3 without whole words": (LLAMA3, False, "smaug-bpe"),
    "Llama 4": (LLAMA4, True, "llama4"),
    "SmolLM2": ([DIGITS, {**BYTES, "use_regex": True}], False, "smollm"),
    "GPT-2": ([BYTES], False, "gpt-2"),
    "GPT-2 by a newer tokenizers": ([{**BYTES, "trim_offsets": False, "use_regex": True}], False, "gpt-2"),
}
STRANGE: dict[str, list[Any]] = {
    "removed separators": [{**SPLIT, "behavior": "Removed"}, LLAMA3[1]],
    "inverted": [{**SPLIT, "invert": True}, LLAMA3[1]],
    "a space before": [SPLIT, {**LLAMA3[1], "add_prefix_space": True}],
    "a second regex": [SPLIT, BYTES],
    "whitespace split": [SPLIT, {"type": "Whitespace"}, LLAMA3[1]],
    "metaspace": [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, *LLAMA3],
    "no bytes": [SPLIT],
    "GPT-2 with a space before": [{**BYTES, "add_prefix_space": True}],
    "groups of digits": [{**DIGITS, "individual_digits": False}, BYTES],
    "a step that is text": ["x", *LLAMA3],
    "nothing": [],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_pre_tokenizer_is_recognised(name: str) -> None:
    steps, whole_words, expected = PUBLISHED[name]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    for pre_tokenizer in (sequence, steps[0] if len(steps) == 1 else sequence):
        tokenizer = {"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": whole_words}}
        assert pre_tokenizer_name(Path("tokenizer.json"), tokenizer) == expected


def test_an_unknown_pre_tokenizer_is_refused_before_a_weight_is_read(llama3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(llama3, folder)
    variants.edit_tensors(folder, lambda tensors: [tensor.fill(np.nan) for tensor in tensors.values()])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    with pytest.raises(CheckpointError, match="NaN"):
        converters.convert(folder, tmp_path / "x.gguf")
    _write(folder / "tokenizer.json", tokenizer | {"pre_tokenizer": {"type": "Whitespace"}})
    with refusal(CheckpointError, "unknown pre-tokenizer", folder / "tokenizer.json"):
        converters.convert(folder, tmp_path / "x.gguf")


@pytest.mark.parametrize("name", STRANGE)
def test_a_pre_tokenizer_that_splits_otherwise_is_refused(name: str) -> None:
    pre_tokenizer = {"type": "Sequence", "pretokenizers": STRANGE[name]}
    with pytest.raises(CheckpointError, match="unknown pre-tokenizer"):
        pre_tokenizer_name(Path("tokenizer.json"), {"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": True}})
