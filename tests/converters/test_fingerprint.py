"""Every file that a conversion reads is fingerprinted, whatever it is called: a change is noticed, and begins anew."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import meta_folders
import npu
import numpy as np
import pytest
from safetensors.numpy import save_file

import converters
from edge_llama import CheckpointError

_opened: list[Path] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        _opened.append(Path(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def opened_in(folder: Path) -> Iterator[set[Path]]:
    """Afterwards, the files below ``folder`` that were opened meanwhile."""
    global _opened  # noqa: PLW0603 - a hook can't be taken away
    found: set[Path] = set()
    _opened = []
    try:
        yield found
    finally:
        paths, _opened = _opened, None
        found |= {path.absolute() for path in paths if path.absolute().is_relative_to(folder) and path.is_file()}


def hugging_face(folder: Path) -> Path:
    source = checkpoints.llama3(folder / "Tiny-Instruct", template_file=True, shards=2)
    (source / "README.md").write_text("---\nlicense: llama3\n---\n")
    (source / "LICENSE").write_text("terms")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    return source


def two_towers(folder: Path) -> Path:
    return llama4.scout(folder / "scout")


def meta(folder: Path) -> Path:
    source = meta_folders.llama3(folder / "Tiny-Instruct" / "original", shards=2)
    shutil.move(source / "tokenizer.model", source.parent / "tokenizer.model")
    (source / "USE_POLICY.md").write_text("terms")
    return source


def gguf(folder: Path) -> Path:
    output = folder / "parts" / "tiny.gguf"
    output.parent.mkdir()
    return converters.convert(checkpoints.llama3(folder / "tiny"), output, quant="f16", max_shard_bytes=300_000).output


def adapter(folder: Path) -> dict[str, Any]:
    place = folder / "adapter"
    place.mkdir()
    checkpoints.write_json(
        place / "adapter_config.json", peft_type="LORA", r=2, lora_alpha=2, target_modules=["q_proj"]
    )
    shapes = {"lora_A": (2, 128), "lora_B": (128, 2)}
    names = (f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in range(3))
    save_file(
        {f"{name}.{part}.weight": np.ones(shape, np.float32) for name in names for part, shape in shapes.items()},
        place / "adapter_model.safetensors",
    )
    return {"lora": place}


def template(folder: Path) -> dict[str, Any]:
    (folder / "chat template.txt").write_text("{{ messages }}")
    return {"chat_template": folder / "chat template.txt"}


def ranges(folder: Path) -> dict[str, Any]:
    side = json.loads((folder / "scout" / "config.json").read_text())["vision_config"]["image_size"]
    noise = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    measured = npu.in_integers(folder / "scout", folder.parent / "npu", noise) / "ranges.json"
    shutil.copy(measured, folder / "ranges.txt")
    return {"tower": "vision", "vision_quant": "a16w8", "calibration": [folder / "ranges.txt"]}


def nothing(_folder: Path) -> dict[str, Any]:
    return {}


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], dict[str, Any]], str]] = {
    "a folder of Hugging Face's": (hugging_face, nothing, "out.gguf"),
    "both towers": (two_towers, nothing, "out"),
    "Meta's, its tokenizer beside it": (meta, nothing, "out.gguf"),
    "a GGUF file in parts": (gguf, nothing, "out.gguf"),
    "an adapter": (hugging_face, adapter, "out.gguf"),
    "a chat template": (hugging_face, template, "out.gguf"),
    "ranges": (two_towers, ranges, "out"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_opened_is_known_beforehand(case: str, tmp_path: Path) -> None:
    make, more, output = CASES[case]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    source, options = make(inputs), more(inputs)
    with opened_in(inputs) as opened:
        done = converters.convert(source, tmp_path / output, threads=1, **options)
    assert len(opened) > 1
    assert {path.resolve() for path in opened} <= {path.resolve() for path in done.plan.files}
    state = done.plan.source_state
    for path in opened:
        os.utime(path, ns=(1, 1))
        before, state = state, converters.plan(source, tmp_path / f"another {output}", **options).source_state
        assert state != before, path


def test_a_file_that_appears_is_noticed(tmp_path: Path) -> None:
    source = checkpoints.llama3(tmp_path / "tiny")
    before = converters.plan(source, tmp_path / "out.gguf").key
    (source / "LICENSE").write_text("terms")
    assert converters.plan(source, tmp_path / "out.gguf").key != before


def test_a_file_that_is_not_read_does_not_matter(tmp_path: Path) -> None:
    source = checkpoints.llama3(tmp_path / "tiny")
    log = source / "convert.log"
    log.write_text("begun")

    def write(done: int, _total: int) -> None:
        log.write_text(f"{done}")

    converters.convert(source, source / "out.gguf", on_progress=write)


def test_a_template_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source, options = checkpoints.llama3(tmp_path / "tiny"), template(tmp_path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        converters.convert(
            source,
            tmp_path / "out.gguf",
            on_progress=lambda *_: options["chat_template"].write_text("other"),
            **options,
        )
    assert not (tmp_path / "out.gguf").exists()
