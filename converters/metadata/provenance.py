"""Where a model comes from and under which terms: what a checkpoint says of it goes into the output.

A folder's README.md begins with Hugging Face's model card metadata (YAML); licences and policies are files beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.gguf import Value, ValueType, array, string, u32
from edge_llama.host.regular_files import content_of, text_of

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?$", re.DOTALL | re.MULTILINE)
_NOTICE = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)(\.(txt|md))?", re.IGNORECASE)
_MAX_BYTES = 1 << 20
_CARD = "README.md"
_TEXTS = {"license": "license", "license_name": "license.name", "license_link": "license.link"}
_LISTS = {"tags": "tags", "language": "languages"}


@dataclass(frozen=True, slots=True)
class Provenance:
    """``fields``: GGUF metadata; ``notices``: files that go along, by name; ``problem``: why something is missing."""

    fields: Mapping[str, Value] = field(default_factory=dict)
    notices: Mapping[str, bytes] = field(default_factory=dict)
    problem: str = ""


def read_provenance(folder: Path) -> Provenance:
    """What ``folder`` says of the model's origin; a model card that can't be read is a problem to tell, no error."""
    try:
        card, problem = _card(folder / _CARD)
        notices = {path.name: content_of(path) for path in _notices(folder)}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    return Provenance(_fields(card), notices, problem)


def provenance_files(folder: Path) -> list[Path]:
    """The files that :func:`read_provenance` reads, if they are there."""
    return [folder / _CARD, *_notices(folder)]


def _notices(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if _NOTICE.fullmatch(path.name) and path.is_file() and path.stat().st_size <= _MAX_BYTES
    ]


def _card(path: Path) -> tuple[Mapping[str, Any], str]:
    """The card's metadata, and why there is none although there is a card."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return {}, ""
    match = _FRONT_MATTER.match(text_of(path, "utf-8", "replace"))
    if match is None:
        return {}, ""
    try:
        import yaml  # noqa: PLC0415 - an extra, needed for cards only
    except ImportError:
        return {}, 'licence and base model are not carried along: pip install "edge-llama[convert]" reads README.md'
    try:
        card = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, "licence and base model are not carried along: README.md's metadata is no valid YAML"
    return (card, "") if isinstance(card, dict) else ({}, "")


def _fields(card: Mapping[str, Any]) -> dict[str, Value]:
    """Under the keys that llama.cpp's converter uses."""
    fields = {f"general.{name}": string(card[key]) for key, name in _TEXTS.items() if isinstance(card.get(key), str)}
    for key, name in _LISTS.items():
        if texts := _texts(card.get(key)):
            fields[f"general.{name}"] = array(ValueType.STRING, texts)
    bases = _texts(card.get("base_model"))
    if bases:
        fields["general.base_model.count"] = u32(len(bases))
    for number, base in enumerate(bases):
        organization, _, name = base.rpartition("/")
        fields[f"general.base_model.{number}.name"] = string(name)
        if organization:
            fields[f"general.base_model.{number}.organization"] = string(organization)
            fields[f"general.base_model.{number}.repo_url"] = string(f"https://huggingface.co/{base}")
    return fields


def _texts(value: Any) -> list[str]:
    """A text or a list of texts, as a list."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
