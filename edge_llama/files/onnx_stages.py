"""The files that genai_config.json names for its text tower: one, or in a ``decoder-pipeline`` one for each stage.

The stages of a tower for NPUs are ``inputs``, ``prompt`` and ``token``: what follows from ids and positions alone, a
window of a prompt, and a token. No native code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_llama.files.json_fields import Fields

PIPELINE = "decoder-pipeline"
"""The ``type`` of a model whose text tower comes in stages."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The graphs of a text tower in stages."""

    inputs: Path
    prompt: Path
    token: Path


def is_staged(config: Fields) -> bool:
    """Whether the text tower comes in stages, by genai_config.json. ArtifactError if that is damaged."""
    return bool(config.within("model").get("type", str, "") == PIPELINE)


def files_named(config: Fields, folder: Path) -> tuple[Path, ...]:
    """The graphs of the text tower in ``folder``, the one by which it is known first: of stages that of the prompt.

    ArtifactError if genai_config.json names none, or one elsewhere.
    """
    if is_staged(config):
        stages = stages_named(config, folder)
        return stages.prompt, stages.token, stages.inputs
    return (_file(config.within("model").within("decoder"), folder),)


def stages_named(config: Fields, folder: Path) -> Stages:
    """The graphs of a text tower in stages. ArtifactError if genai_config.json lacks one, or names one elsewhere."""
    decoder = config.within("model").within("decoder")
    found: dict[str, Any] = {}
    for entry in decoder.get("pipeline", list):  # onnxruntime-genai takes several objects, and several stages in each
        if not isinstance(entry, Mapping):
            raise decoder.fail("pipeline", f"has {entry!r:.100}, expected objects with stages")
        found |= entry
    stages = replace(decoder, content=found, called=f"{decoder.called}pipeline.")
    inputs, prompt, token = (_file(stages.within(stage), folder) for stage in ("inputs", "prompt", "token"))
    return Stages(inputs, prompt, token)


def _file(stage: Fields, folder: Path) -> Path:
    name: str = stage.get("filename", str)
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise stage.fail("filename", f"is {name!r:.100}, expected a file in this folder")
    return folder / name
