"""Every file of every kind of source, damaged as files are: a plan, or an error that names the file and the remedy.

Fields of Hugging Face's JSON files are in ``test_bad_fields.py``; here are whole files, and the fields of the others.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import meta_folders
import numpy as np
import pytest
from ggufs import rewritten
from refusals import refusal

import converters
from edge_llama.errors import CheckpointError, InputError, OptionError
from edge_llama.files.gguf import string

_SAMPLE = 60  # edits of a file in one run: two seconds
Damage = Callable[[Path], object]


def cut(path: Path, at: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * at)] if at < 1 else raw[:-1])


def put(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def linked(target: str) -> Damage:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(target or path.name)

    return link


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "empty": put(b""),
    "its first byte": lambda path: cut(path, 1 / max(path.stat().st_size, 1)),
    "a third of it": lambda path: cut(path, 1 / 3),
    "its last byte missing": lambda path: cut(path, 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(np.random.default_rng(7).bytes(path.stat().st_size)),
    "a page of HTML": put(b"<!DOCTYPE html><html><title>Sign in</title></html>"),
    "an LFS pointer": put(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "a folder": replaced_by_folder,
    "a link to nothing": linked("nowhere"),
    "a link to itself": linked(""),
}
JSON: dict[str, Damage] = {
    "null": put(b"null"),
    "a list": put(b"[1, 2]"),
    "an empty object": put(b"{}"),
    "a number of many digits": put(b'{"a": ' + b"9" * 5000 + b"}"),
    "nested without end": put(b"[" * 200_000),
    "nested objects without end": put(b'{"a":' * 200_000),
    "no UTF-8": put(b'{"a": "\xff\xfe"}'),
    "a lone surrogate": put(b'{"architectures": ["\\ud800"], "r": "\\ud800", "dim": "\\ud800"}'),
}
VALUES = (None, True, -1, 0, 1.5, 10**30, float("nan"), "x", "", "\ud800", [], [None], {}, {"a": [1]})


def _hugging_face(folder: Path) -> Path:
    """With all that may lie in one: shards and their index, both forms of a tokenizer, cards and templates."""
    checkpoints.llama2(folder, shards=2)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "added_tokens.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n# Card\n")
    (folder / "LICENSE").write_text("Do no harm.\n")
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "bias": "none"}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    shapes = {"A": (2, 128), "B": (128, 2)}
    weights = {
        prefix.format(layer, side): np.ones(shape, np.float32) for layer in range(3) for side, shape in shapes.items()
    }
    checkpoints.write_safetensors(folder / "adapter_model.safetensors", weights, "F32")
    return folder


FILES = {
    "hugging face": (
        *("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer_config.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json", "tokenizer.model"),
        *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "README.md", "LICENSE"),
    ),
    "meta": ("params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"),
    "meta in int4": ("params.json", "consolidated.00.pth"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "gguf": ("model.gguf",),
}
_WHATEVER = {*DAMAGES}
TAKEN: dict[str, set[str]] = {
    "README.md": _WHATEVER,
    "LICENSE": _WHATEVER,
    "chat_template.jinja": {"its first byte"},
    "generation_config.json": {"an empty object", "a lone surrogate"},
    "special_tokens_map.json": {"an empty object", "a lone surrogate"},
    "tokenizer_config.json": {"an empty object", "a lone surrogate"},
    "added_tokens.json": {"an empty object"},
    "tokenizer.json": {"an empty object"},
    "tokenizer.model": {"its last byte missing"},
}
"""Damages that leave a file that may be so; what a card or a licence says changes no number."""


BESIDE = {"added_tokens.json": ("tokenizer.model",), "adapter_config.json": ("adapter_model.safetensors",)}
"""What a file may disagree with: either is named then."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; the GGUF file lies in one."""
    root = tmp_path_factory.mktemp("sources")
    int4 = {"group_size": 32, "spinquant": False}
    found = {
        "hugging face": _hugging_face(root / "hf"),
        "meta": meta_folders.llama3(root / "meta", shards=2),
        "meta in int4": meta_folders.llama3_int4(root / "int4", int4, {"rank": 2, "scale": 1.0}),
        "adapter": _adapter(root / "adapter"),
        "gguf": root / "gguf",
    }
    found["gguf"].mkdir()
    converters.convert(found["hugging face"], found["gguf"] / "model.gguf", quant="q8_0")
    left_out = {(kind, file.name) for kind, folder in found.items() for file in folder.iterdir()}
    left_out -= {(kind, file) for kind, files in FILES.items() for file in files}
    assert left_out == {("meta in int4", "tokenizer.model")}
    return found


def refused(kind: str, sources: dict[str, Path], damaged: Path, file: str) -> bool:
    """Whether a plan is refused; that must be said as every refusal is, and by the file's name."""
    error = _planning_error(kind, sources, damaged, file)
    assert {path.name for path in damaged.parent.iterdir()} == {damaged.name}
    if error is None:
        return False
    assert any(name in str(error) for name in (file, *BESIDE.get(file, ()))), f"does not name {file}: {error}"
    assert error.remedy, f"no remedy: {error}"
    assert "\n" not in str(error)
    return True


def _planning_error(kind: str, sources: dict[str, Path], damaged: Path, file: str) -> InputError | None:
    output = damaged.parent / "out.gguf"
    try:
        if kind == "adapter":
            converters.plan(sources["hugging face"], output, quant="f16", lora=damaged)
        else:
            converters.plan(damaged / file if kind == "gguf" else damaged, output, quant="f16")
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
def test_a_damaged_file_is_refused_by_name_with_a_remedy(
    kind: str, file: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    taken = set()
    for name, damage in {**DAMAGES, **(JSON if file.endswith(".json") else {})}.items():
        damaged = tmp_path / name / "damaged"
        shutil.copytree(sources[kind], damaged)
        damage(damaged / file)
        if not refused(kind, sources, damaged, file):
            taken.add(name)
        shutil.rmtree(tmp_path / name)
    assert taken <= TAKEN.get(file, set())


@pytest.mark.parametrize(
    ("kind", "file"), [("meta", "params.json"), ("meta in int4", "params.json"), ("adapter", "adapter_config.json")]
)
def test_a_field_of_a_wrong_type_is_refused_or_does_not_matter(
    kind: str, file: str, sources: dict[str, Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(sources[kind], damaged)
    content = json.loads((damaged / file).read_text())
    places = [(*outer, key) for outer, inner in _objects(content) for key in inner]
    choices = [(place, value) for place in places for value in VALUES]
    for at in rng.permutation(len(choices))[:_SAMPLE]:
        place, value = choices[at]
        edited = copy.deepcopy(content)
        inner = edited
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (damaged / file).write_text(json.dumps(edited))
        refused(kind, sources, damaged, file)


def _objects(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The object and those in it, each with its place."""
    yield (), content
    for key, value in content.items():
        if isinstance(value, dict):
            yield from (((key, *place), inner) for place, inner in _objects(value))


def test_a_folder_that_is_linked_into_itself_is_no_endless_search(sources: dict[str, Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(sources["hugging face"], tmp_path / "cyclic"))
    (damaged / "additional_chat_templates").symlink_to(damaged)
    (damaged / "original").symlink_to(damaged)
    assert converters.plan(damaged, tmp_path / "out.gguf", quant="f16").layout.entries
    (damaged / "config.json").unlink()
    (damaged / "config.json").symlink_to(damaged)
    with refusal(CheckpointError, "config.json", damaged):
        converters.plan(damaged, tmp_path / "out.gguf", quant="f16")


def test_a_template_that_is_no_jinja_is_refused_unless_another_is_given(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    """A GGUF file that has such a one stays as it is, as in llama.cpp's quantizer, and a warning tells."""
    folder = Path(shutil.copytree(sources["hugging face"], tmp_path / "folder"))
    output = tmp_path / "out.gguf"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
    )
    assert converters.plan(folder, output).warnings == ()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}\n{% for m in messages %}{{ m")
    with refusal(CheckpointError, r"chat_template\.jinja: the chat template is no valid Jinja: line 2", folder):
        converters.plan(folder, output)
    assert converters.plan(folder, output, chat_template="llama2").layout.entries
    with refusal(OptionError, r"--chat-template .*: is no valid Jinja: line 2"):
        converters.plan(folder, output, chat_template=folder / "chat_template.jinja")
    broken = {"tokenizer.chat_template": string("{% if")}
    bad = rewritten(sources["gguf"] / "model.gguf", tmp_path / "bad.gguf", fields=broken)
    assert any("is no valid Jinja" in warning for warning in converters.plan(bad, output).warnings)
