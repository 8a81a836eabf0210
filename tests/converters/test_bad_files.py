"""Every file of every kind of source, damaged as files are: a plan, or an error that names the file and the remedy.

Fields of Hugging Face's JSON files are in ``test_bad_fields.py``; here are whole files, and the fields of the others.
"""

import json
from collections.abc import Callable
from pathlib import Path

import checkpoints
import meta_folders
import numpy as np
import pytest

import converters
from edge_llama.errors import InputError

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


def made_folder(path: Path) -> None:
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
    "a folder": made_folder,
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


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; the GGUF file lies in one."""
    root = tmp_path_factory.mktemp("sources")
    found = {
        "hugging face": _hugging_face(root / "hf"),
        "meta": meta_folders.llama3(root / "meta", shards=2),
        "meta in int4": meta_folders.llama3_int4(
            root / "int4", {"group_size": 32, "spinquant": False}, {"rank": 2, "scale": 1.0}
        ),
        "adapter": _adapter(root / "adapter"),
        "gguf": root / "gguf",
        "bundle": root / "bundle",
    }
    found["gguf"].mkdir()
    converters.convert(found["hugging face"], found["gguf"] / "model.gguf", quant="q8_0")
    converters.convert(found["hugging face"], found["bundle"], to="gguf", quant="q8_0") if False else None
    del found["bundle"]
    return found


def _planned(kind: str, sources: dict[str, Path], damaged: Path, output: Path) -> None:
    if kind == "adapter":
        converters.plan(sources["hugging face"], output, quant="f16", lora=damaged)
    else:
        converters.plan(damaged / "model.gguf" if kind == "gguf" else damaged, output, quant="f16")


def _problem(kind: str, sources: dict[str, Path], damaged: Path, file: str) -> str:
    """What is wrong with the answer to the damage; "" if nothing is."""
    output = damaged.parent / "out.gguf"
    try:
        _planned(kind, sources, damaged, output)
    except InputError as error:
        text = str(error)
        lacks = [what for what, there in (("the file", file in text), ("a remedy", error.remedy)) if not there]
        return f"names not {' nor '.join(lacks)}: {text}" if lacks or "\n" in text else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
