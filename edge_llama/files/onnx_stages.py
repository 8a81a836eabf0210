"""The files that genai_config.json names for its text tower: one, or in a ``decoder-pipeline`` one for each stage.

The stages of a tower for NPUs: one for what follows from ids and positions alone, then those that read a window of a
prompt, and those that read a token. Each of these is one graph, or several by layers, where one would be too large. No
native code.
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
    """The graphs of a text tower in stages; those of layers in their order."""

    inputs: Path
    prompts: tuple[Path, ...]
    tokens: tuple[Path, ...]


def is_staged(config: Fields) -> bool:
    """Whether the text tower comes in stages, by genai_config.json. ArtifactError if that is damaged."""
    return bool(config.within("model").get("type", str, "") == PIPELINE)


def files_named(config: Fields, folder: Path) -> tuple[Path, ...]:
    """The graphs of the text tower in ``folder``, the one by which it is known first: of stages that of the prompt.

    ArtifactError if genai_config.json names none, or one elsewhere.
    """
    if is_staged(config):
        stages = stages_named(config, folder)
        return *stages.prompts, *stages.tokens, stages.inputs
    return (_file(config.within("model").within("decoder"), folder),)


def stages_named(config: Fields, folder: Path) -> Stages:
    """The graphs of a text tower in stages. ArtifactError if genai_config.json lacks one, or names one elsewhere."""
    decoder = config.within("model").within("decoder")
    found: dict[str, Any] = {}
    for entry in decoder.get("pipeline", list):  # onnxruntime-genai takes several objects, and several stages in each
        if not isinstance(entry, Mapping):
            raise decoder.fail("pipeline", f"has {entry!r:.100}, expected objects with stages")
        found |= entry
    all_stages = replace(decoder, content=found, called=f"{decoder.called}pipeline.")
    inputs, prompts, tokens = list[Path](), list[Path](), list[Path]()
    for name in found:
        stage = all_stages.within(name)
        is_for = (stage.get("run_on_prompt", bool, True), stage.get("run_on_token_gen", bool, True))
        group = {(True, True): inputs, (True, False): prompts, (False, True): tokens}.get(is_for)
        if group is None:
            raise all_stages.fail(name, "is for neither prompts nor tokens")
        group.append(_file(stage, folder))
    if len(inputs) != 1 or not prompts or len(prompts) != len(tokens):
        raise decoder.fail(
            "pipeline",
            f"has {len(inputs)} stages for both, {len(prompts)} for prompts and {len(tokens)} for tokens, expected one "
            "for both, and as many for tokens as for prompts",
        )
    return Stages(inputs[0], tuple(prompts), tuple(tokens))


def _file(stage: Fields, folder: Path) -> Path:
    name: str = stage.get("filename", str)
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise stage.fail("filename", f"is {name!r:.100}, expected a file in this folder")
    return folder / name
