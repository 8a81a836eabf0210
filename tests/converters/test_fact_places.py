"""Each fact put into each place, alone and against another: what is read is what transformers reads."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from refusals import refusal
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from variants import edit_json, widened
from vocabularies import split_up

from converters.checkpoint import Checkpoint
from converters.facts import ADDED_TOKENS, CHAT_TEMPLATE, DTYPE, END_TOKENS, ROLES, SAMPLING, WEIGHTS, WORDS
from converters.folder_files import end_ids
from converters.metadata import generation_config
from converters.metadata.vocabulary import TokenType
from converters.sources import open_checkpoint
from converters.tokenizers.writer import write_files
from edge_llama import CheckpointError

SHAPE = checkpoints.Shape(hidden=32, ffn=32, layers=1, heads=2, kv_heads=2)
EXTRA = 6  # rows of the embedding beyond the vocabulary: room for added tokens
Put = Callable[[Path, Any], None]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3 whose files say nothing of these facts."""
    folder = checkpoints.llama3(tmp_path_factory.mktemp("facts") / "bare", shape=SHAPE, dtype="F32", padding=EXTRA)
    _drop(folder / "tokenizer_config.json", "chat_template", "bos_token", "eos_token")
    _drop(folder / "config.json", "bos_token_id", "eos_token_id")
    edit_json(folder / "tokenizer.json", post_processor=None)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "checkpoint"))


def _drop(path: Path, *keys: str) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}), "utf-8")


def _field(file: str, key: str) -> Put:
    """Puts a value into a field of a JSON file, which may not be there yet."""

    def put(folder: Path, value: Any) -> None:
        path = folder / file
        if not path.exists():
            path.write_text("{}")
        edit_json(path, **{key: value})

    return put


def _text(file: str) -> Put:
    def put(folder: Path, value: str) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(value, "utf-8")

    return put


def _alone_and_in_pairs(places: Mapping[str, Put]) -> list[tuple[str, ...]]:
    return [*((place,) for place in places), *itertools.combinations(places, 2)]


def _read(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


# --- chat template

TEMPLATES: dict[str, Put] = {
    "chat_template.jinja": _text("chat_template.jinja"),
    "additional tool_use": _text("additional_chat_templates/tool_use.jinja"),
    "additional default": _text("additional_chat_templates/default.jinja"),
    "tokenizer_config.json": _field("tokenizer_config.json", "chat_template"),
    "tokenizer_config.json, named": lambda folder, text: edit_json(
        folder / "tokenizer_config.json",
        chat_template=[{"name": "default", "template": text}, {"name": "tool_use", "template": text + "{{ tools }}"}],
    ),
    "tokenizer_config.json, an object": lambda folder, text: edit_json(
        folder / "tokenizer_config.json", chat_template={"default": text, "rag": text + "{{ documents }}"}
    ),
}


@pytest.mark.parametrize("places", _alone_and_in_pairs(TEMPLATES), ids=", ".join)
def test_chat_templates_are_those_of_transformers(places: tuple[str, ...], folder: Path) -> None:
    for place in places:
        TEMPLATES[place](folder, f"{{{{ bos_token }}}} {place}")
    expected = AutoTokenizer.from_pretrained(folder).chat_template
    expected = expected if isinstance(expected, dict) else {"default": expected}
    read = _read(folder)
    assert read.vocabulary.chat_templates == expected
    from_both = len({place.split(",")[0] for place in places if place.startswith("tokenizer_config")}) == 1
    is_file = any(not place.startswith("tokenizer_config") for place in places)
    assert (CHAT_TEMPLATE.topic in read.notes) == (from_both and is_file)


@pytest.mark.parametrize("file", ["processor_config.json", "chat_template.json"])
def test_a_processors_template_is_used_for_want_of_another(file: str, folder: Path) -> None:
    _field(file, "chat_template")(folder, "of the processor")
    assert _read(folder).vocabulary.chat_templates == {"default": "of the processor"}
    TEMPLATES["tokenizer_config.json"](folder, "own")
    read = _read(folder)
    assert read.vocabulary.chat_templates == {"default": "own"}
    assert f"{file}: chat_template differs" in read.notes[CHAT_TEMPLATE.topic]


def test_line_ends_and_byte_order_of_a_template_file_are_no_part_of_it(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ bos_token }}\r\nx")
    assert _read(folder).vocabulary.chat_templates == {"default": "{{ bos_token }}\nx"}


# --- end tokens and sampling

ENDS: dict[str, Put] = {
    "generation_config.json": _field("generation_config.json", "eos_token_id"),
    "generation_config.json without": lambda folder, _ids: _field("generation_config.json", "top_p")(folder, 0.5),
    "config.json": _field("config.json", "eos_token_id"),
    "text_config": lambda folder, ids: edit_json(folder / "config.json", text_config={"eos_token_id": ids}),
}


@pytest.mark.parametrize("places", _alone_and_in_pairs(ENDS), ids=", ".join)
@pytest.mark.parametrize("as_list", [True, False])
def test_every_end_token_of_transformers_ends_an_answer(places: tuple[str, ...], as_list: bool, folder: Path) -> None:
    _field("tokenizer_config.json", "eos_token")(folder, "<|eot_id|>")
    for at, place in enumerate(places):
        ENDS[place](folder, [40 + at, 50 + at] if as_list else 40 + at)
    expected = _listed(_reference(folder).eos_token_id)
    read = _read(folder)
    ends, known = generation_config.end_ids(read.generation), end_ids(read.vocabulary)
    if "generation_config.json" in places:
        assert ends == expected
    else:
        assert set(expected) <= set(ends or known)
        assert set(ends) <= {*known, *(40, 41, 50, 51)}
    differing = [place for place in places if "without" not in place]
    assert (END_TOKENS.topic in read.notes) == (len(differing) == 2)


def _reference(folder: Path) -> GenerationConfig:
    """As ``from_pretrained`` of a model has it: of its own file, else of config.json."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)


def _listed(given: Any) -> list[int]:
    return given if isinstance(given, list) else [] if given is None else [given]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(-1, None), ([7, -1], [7]), (7.0, 7), ([7.0, 8], [7, 8]), ([], None), (None, None), ([-1, -100], None)],
)
def test_an_end_token_that_transformers_ignores_is_none(given: Any, expected: Any, folder: Path) -> None:
    _field("generation_config.json", "eos_token_id")(folder, given)
    read = _read(folder)
    assert read.generation.get("eos_token_id") == expected
    assert ("-1" in read.notes.get(SAMPLING.topic, "")) == ("-1" in str(given))


def test_an_end_token_of_config_json_past_the_vocabulary_is_none(folder: Path) -> None:
    _field("config.json", "eos_token_id")(folder, [7, 128001])
    read = _read(folder)
    assert 7 in read.generation["eos_token_id"]
    assert 128001 not in read.generation["eos_token_id"]
    assert "128001" in read.notes[SAMPLING.topic]


def test_a_count_written_with_a_point_is_a_count(folder: Path) -> None:
    _field("generation_config.json", "top_k")(folder, 50.0)
    read = _read(folder)
    assert type(read.generation["top_k"]) is int
    assert (read.generation["top_k"], read.notes[SAMPLING.topic]) == (50, "top_k 50.0 is taken as 50")


@pytest.mark.parametrize("with_file", [True, False])
def test_sampling_of_config_json_counts_where_there_is_no_other(with_file: bool, folder: Path) -> None:
    edit_json(folder / "config.json", temperature=0.7, text_config={"top_k": 9, "temperature": 0.1})
    if with_file:
        _field("generation_config.json", "top_p")(folder, 0.5)
    expected = _reference(folder)
    generation = _read(folder).generation
    for key in ("temperature", "top_k", "top_p"):
        assert generation.get(key) == getattr(expected, key), key


# --- roles

ROLE_PLACES = (
    ("special_tokens_map.json",),
    ("tokenizer_config.json",),
    ("special_tokens_map.json", "tokenizer_config.json"),
)
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", ROLE_PLACES, ids=", ".join)
@pytest.mark.parametrize("has_decoder", [False, True])
def test_roles_are_those_of_transformers(kind: str, places: tuple[str, ...], has_decoder: bool, folder: Path) -> None:
    texts = {"special_tokens_map.json": "<|eot_id|>", "tokenizer_config.json": "<|end_of_text|>"}
    for place in places:
        _field(place, f"{kind}_token")(folder, texts[place])
    if has_decoder:
        entries = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"][:1]
        decoder = {str(entry.pop("id")): entry for entry in entries}
        _field("tokenizer_config.json", "added_tokens_decoder")(folder, decoder)
    reference = AutoTokenizer.from_pretrained(folder)
    read = _read(folder)
    assert read.vocabulary.special.get(kind) == getattr(reference, f"{kind}_token_id")
    assert (ROLES.of(kind).topic in read.notes) == (len(places) == 2 and not has_decoder)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
def test_the_class_has_the_roles_that_no_file_gives(name: str | None, tmp_path: Path) -> None:
    folder = checkpoints.llama2(tmp_path / "checkpoint", shape=SHAPE)
    _drop(folder / "tokenizer_config.json", "bos_token", "eos_token", "unk_token", "tokenizer_class")
    _drop(folder / "config.json", "bos_token_id", "eos_token_id")
    edit_json(folder / "tokenizer.json", post_processor=None)
    if name:
        edit_json(folder / "tokenizer_config.json", tokenizer_class=name)
    reference = AutoTokenizer.from_pretrained(folder)
    special = _read(folder).vocabulary.special
    assert (special.get("bos"), special.get("eos")) == (reference.bos_token_id, reference.eos_token_id)


# --- added tokens


def _in_tokenizer_json(folder: Path, token: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({**flags, **token})
    path.write_text(json.dumps(content), "utf-8")


def _in_decoder(folder: Path, token: dict[str, Any]) -> None:
    known = json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("added_tokens_decoder", {})
    entry = {"content": token["content"], "special": token["special"], "normalized": False}
    _field("tokenizer_config.json", "added_tokens_decoder")(folder, {**known, str(token["id"]): entry})


ADDED: dict[str, Put] = {
    "tokenizer.json": _in_tokenizer_json,
    "added_tokens_decoder": _in_decoder,
    "added_tokens.json": lambda folder, token: _field("added_tokens.json", token["content"])(folder, token["id"]),
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece beside", "sentencepiece by json"])
@pytest.mark.parametrize("places", _alone_and_in_pairs(ADDED), ids=", ".join)
def test_added_tokens_are_those_of_transformers(
    places: tuple[str, ...], kind: str, special: bool, bare: Path, tmp_path: Path
) -> None:
    folder = _with_room(kind, bare, tmp_path / "checkpoint")
    first = len(AutoTokenizer.from_pretrained(folder))
    for at, place in enumerate(places):  # the second place calls the same id otherwise
        ADDED[place](folder, {"id": first, "content": f"[tool {at}]", "special": special})
    reference = AutoTokenizer.from_pretrained(folder)
    read = _read(folder)
    expected = str(reference.added_tokens_decoder[first])
    assert read.vocabulary.tokens[first] == expected
    is_control = read.vocabulary.types[first] == TokenType.CONTROL
    assert is_control == reference.added_tokens_decoder[first].special
    assert (ADDED_TOKENS.topic in read.notes) == (len(places) == 2)


def _with_room(kind: str, bare: Path, folder: Path) -> Path:
    if kind == "byte-level":
        return Path(shutil.copytree(bare, folder))
    checkpoints.llama2(folder, shape=SHAPE)
    if kind == "sentencepiece by json":
        (folder / "tokenizer.model").unlink()
    return widened(folder, EXTRA)


def test_a_word_with_a_role_is_a_token_of_its_own(folder: Path) -> None:
    _field("tokenizer_config.json", "eos_token")(folder, "!")
    reference, read = AutoTokenizer.from_pretrained(folder), _read(folder)
    index = reference.convert_tokens_to_ids("!")
    assert reference.added_tokens_decoder[index].special
    assert read.vocabulary.types[index] == TokenType.CONTROL


# --- weights, dtype, name


def _other_weights(folder: Path, name: str) -> None:
    """A second set of weights, all zero, in ``name`` or the files of an index."""
    tensors = {key: np.zeros_like(tensor) for key, tensor in load_file(folder / "model.safetensors").items()}
    file = name if name.endswith(".safetensors") else "model-00001-of-00001.safetensors"
    checkpoints.write_safetensors(folder / file, tensors, "F32")
    if name != file:
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, file)}))


@pytest.mark.parametrize(
    "other",
    [
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "model-extra.safetensors",
        "adapter_model.safetensors",
    ],
)
def test_of_two_sets_of_weights_that_of_transformers_is_read(other: str, folder: Path) -> None:
    _other_weights(folder, other)
    reference = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.embed_tokens.weight"].numpy()
    read = _read(folder)
    embedding = read.tensors["model.embed_tokens.weight"]
    assert np.array_equal(embedding.read(0, 4).view(np.float32), reference[:4])
    assert other in read.notes[WEIGHTS.topic]


@pytest.mark.parametrize("name", ["other.safetensors", "other.safetensors.index.json"])
def test_weights_that_config_json_names_are_read(name: str, folder: Path) -> None:
    _other_weights(folder, name)
    edit_json(folder / "config.json", transformers_weights=name)
    reference = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.embed_tokens.weight"].numpy()
    read = _read(folder)
    assert not reference.any()
    assert not read.tensors["model.embed_tokens.weight"].read(0, 4).any()
    assert "model.safetensors" in read.notes[WEIGHTS.topic]
    assert folder / name in read.files


@pytest.mark.parametrize("named", ["../x.safetensors", "x.bin", 3, "gone.safetensors"])
def test_weights_that_config_json_names_wrongly_are_refused(named: Any, folder: Path) -> None:
    edit_json(folder / "config.json", transformers_weights=named)
    with refusal(CheckpointError, "transformers_weights", folder):
        _read(folder)


@pytest.mark.parametrize(
    ("name", "expected"), [("consolidated.safetensors", "Mistral's own"), ("adapter_model.safetensors", "an adapter's")]
)
def test_weights_of_another_kind_alone_are_named(name: str, expected: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with refusal(CheckpointError, expected, folder):
        _read(folder)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_that_the_weights_do_not_have_is_told(key: str, folder: Path) -> None:
    _drop(folder / "config.json", "dtype", "torch_dtype")
    assert DTYPE.topic not in _read(folder).notes
    edit_json(folder / "config.json", **{key: "bfloat16"})
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    assert f"config.json: {key} ('bfloat16') differs" in _read(folder).notes[DTYPE.topic]
    edit_json(folder / "config.json", **{key: "float32"})
    assert DTYPE.topic not in _read(folder).notes


def test_of_two_dtypes_in_config_json_that_of_transformers_is_compared(folder: Path) -> None:
    edit_json(folder / "config.json", dtype="float32", torch_dtype="bfloat16")
    assert AutoConfig.from_pretrained(folder).dtype == torch.float32
    assert DTYPE.topic not in _read(folder).notes


@pytest.mark.parametrize(
    ("place", "published", "expected"),
    [
        ("models--meta-llama--Llama-3.2-1B/snapshots/" + "0a" * 20, "./run/checkpoint-300", "Llama-3.2-1B"),
        ("models--gpt2/snapshots/" + "0a" * 20, None, "gpt2"),
        ("models/" + "0a" * 20, "meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("models/" + "0a" * 20, None, "0a" * 20),
        ("models/mine", "meta-llama/Llama-3.2-1B", "mine"),
    ],
)
def test_a_hash_is_no_name(place: str, published: str | None, expected: str, bare: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / place))
    edit_json(folder / "config.json", **({"_name_or_path": published} if published else {}))
    assert _read(folder).name == expected


# --- what surrounds a text

ADD_FLAGS: list[dict[str, bool]] = [
    {},
    {"add_bos_token": True},
    {"add_bos_token": False},
    {"add_eos_token": True},
]


@pytest.mark.parametrize("flags", ADD_FLAGS, ids=str)
@pytest.mark.parametrize("files", ["both", "tokenizer.json", "tokenizer.json without steps", "tokenizer.model"])
def test_what_surrounds_a_text_is_as_in_transformers(files: str, flags: dict[str, bool], tmp_path: Path) -> None:
    folder = checkpoints.llama2(tmp_path / "checkpoint", shape=SHAPE)
    _drop(folder / "tokenizer_config.json", "add_bos_token", "add_eos_token")
    edit_json(folder / "tokenizer_config.json", **flags)
    if files != "both":
        (folder / ("tokenizer.json" if files == "tokenizer.model" else "tokenizer.model")).unlink()
    if "without" in files:
        edit_json(folder / "tokenizer.json", post_processor=None)
    reference = AutoTokenizer.from_pretrained(folder)
    ids, bare = reference.encode("a b"), reference.encode("a b", add_special_tokens=False)
    read = _read(folder)
    added = {"bos": ids[0] == reference.bos_token_id, "eos": ids[-1] == reference.eos_token_id}
    assert len(ids) - len(bare) == sum(added.values())
    add = read.vocabulary.add
    if "add_bos_token" in flags or files != "tokenizer.model":
        assert (add["bos"], add.get("eos", False)) == (added["bos"], added["eos"])
    told = {kind for kind in ("bos", "eos") if f"add_{kind}_token" in read.notes}
    ignored = {kind for kind in ("bos", "eos") if flags.get(f"add_{kind}_token", added[kind]) != added[kind]}
    assert told == ignored


# --- vocab.json and merges.txt

OLD = {
    "GPT2Tokenizer": {"tokenizer_class": "GPT2Tokenizer"},
    "Qwen2Tokenizer": {"tokenizer_class": "Qwen2Tokenizer"},
    "GPT2TokenizerFast": {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<|eot_id|>", "bos_token": None},
}
TEXTS = (
    "Hello there, it's 12345 o'clock!\n\n  x = {'a': 1}",
    "e\u0301 \u00e9 \u4f60\u597d \U0001f642",
    "   \t\n <|endoftext|>a",
)


@pytest.mark.parametrize("name", OLD)
def test_vocab_and_merges_are_a_tokenizer_by_its_class(name: str, folder: Path) -> None:
    split_up(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(OLD[name]))
    reference = AutoTokenizer.from_pretrained(folder)
    read = _read(folder)
    words = reference.get_vocab()
    assert {text: index for index, text in enumerate(read.vocabulary.tokens) if not text.startswith("[PAD")} == words
    for kind in ("bos", "eos"):
        assert read.vocabulary.special.get(kind) == getattr(reference, f"{kind}_token_id")
    ours = Tokenizer.from_str(json.dumps(write_files(read.vocabulary, folder)["tokenizer.json"]))
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == reference.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize(
    ("settings", "files", "expected"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, {}, "tokenizer_class 'LlamaTokenizer'"),
        ({}, {}, "tokenizer_class None"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, {}, "add_prefix_space of GPT2Tokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"merges.txt": None}, "merges.txt: is missing beside vocab.json"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": None}, "vocab.json: is missing beside merges.txt"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"merges.txt": "a b\nabc\n"}, "line 2 is 'abc', expected two tokens"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"merges.txt": ""}, "merges.txt: holds no merge"),
        (
            {"tokenizer_class": "GPT2Tokenizer"},
            {"merges.txt": "qqq zzz"},
            "names a token that is not in the vocabulary",
        ),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": '{"a": "0"}'}, "'a' is '0', expected a number"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": '{"a": 10000000}'}, "has id 10000000"),
    ],
)
def test_vocab_and_merges_that_say_too_little_are_refused(
    settings: dict[str, Any], files: dict[str, str | None], expected: str, folder: Path
) -> None:
    split_up(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
    with refusal(CheckpointError, re.escape(expected), folder):
        _read(folder)


def test_a_tokenizer_json_with_more_words_than_the_bases_tokenizer_model_counts(tmp_path: Path) -> None:
    folder = widened(checkpoints.llama2(tmp_path / "checkpoint", shape=SHAPE), EXTRA)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    first = len(vocab)
    left, right = next(merge if isinstance(merge, list) else merge.split(" ") for merge in merges[::-1])
    vocab[left + right + right] = first
    merges.append([left + right, right] if isinstance(merges[0], list) else f"{left}{right} {right}")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    reference, read = AutoTokenizer.from_pretrained(folder), _read(folder)
    text = (left + right + right).replace("\u2581", " ")
    assert first in reference.encode(text)
    assert read.vocabulary.tokens[first] == left + right + right
    assert read.vocabulary.origin == folder / "tokenizer.json"
    assert f"as {first}) and is not used" in read.notes[WORDS.topic]


def test_tokens_that_are_the_models_own_are_special(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", image_token="[image]", extra_special_tokens={"boi_token": "[boi]"})
    reference, read = AutoTokenizer.from_pretrained(folder), _read(folder)
    for text in ("[image]", "[boi]"):
        index = reference.convert_tokens_to_ids(text)
        assert (read.vocabulary.tokens[index], read.vocabulary.types[index]) == (text, TokenType.CONTROL)


def test_a_role_without_an_id_gets_the_next_one_while_there_is_room(folder: Path) -> None:
    pads = {f"{kind}_token": f"[{kind}]" for kind in ("pad", "sep", "unk")} | {
        "additional_special_tokens": ["[x]", "[y]"]
    }
    edit_json(folder / "tokenizer_config.json", **pads)
    reference, read = AutoTokenizer.from_pretrained(folder), _read(folder)
    for text in ("[pad]", "[sep]", "[unk]", "[x]", "[y]"):
        index = reference.convert_tokens_to_ids(text)
        assert read.vocabulary.tokens[index] == text
        assert read.vocabulary.types[index] == TokenType.CONTROL
    assert "'[unk]' has a role and no id, it gets the next" in read.notes[ADDED_TOKENS.topic]
    edit_json(folder / "tokenizer_config.json", additional_special_tokens=[f"[{at}]" for at in range(5)])
    assert "'[4]' has a role and no id, and the embedding no row for it" in _read(folder).notes[ADDED_TOKENS.topic]
