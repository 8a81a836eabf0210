"""The chat templates of a folder: which of its files has the one in use, and which have named ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converters.facts import CHAT_TEMPLATE, TEMPLATE_FILES, find, notes
from converters.tokenizers.structure import PROCESSOR, read_checked
from edge_llama.errors import CheckpointError
from edge_llama.host.regular_files import text_of

_FILE, _OF_PROCESSORS = "chat_template.jinja", ("processor_config.json", "chat_template.json")


def template_files(folder: Path) -> list[Path]:
    """The files that :func:`chat_templates` reads beside tokenizer_config.json, if they are there."""
    return [*(folder / name for name in (_FILE, *_OF_PROCESSORS)), *_named(folder)]


def chat_templates(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Chat templates by name, that in use as ``default``; and the report's note where files disagree.

    ``settings`` are tokenizer_config.json's. CheckpointError for a file that can't be read, or is empty.
    """
    contents: dict[str, Any] = {name: read_checked(folder / name, PROCESSOR) for name in _OF_PROCESSORS}
    contents["tokenizer_config.json"] = settings
    by_name = {
        file: {"chat_template": templates}
        for file, content in contents.items()
        if (templates := _by_name(content.get("chat_template")))
    }
    found = find(CHAT_TEMPLATE, {**by_name, TEMPLATE_FILES: _of_files(folder)})
    return (dict(found.value) if found else {}), notes((CHAT_TEMPLATE, found))


def _of_files(folder: Path) -> dict[str, str] | None:
    files = {path.stem: _template(path) for path in _named(folder)}
    own = folder / _FILE
    return ({"default": _template(own)} if own.is_file() else {}) | files or None


def _named(folder: Path) -> list[Path]:
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def _by_name(given: Any) -> dict[str, str]:
    """A template, a list of named ones or an object of them, as an object."""
    if isinstance(given, str):
        return {"default": given}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(given, list):
        items = ((entry.get("name"), entry.get("template")) for entry in given)
    elif isinstance(given, Mapping):
        items = given.items()
    return {name: template for name, template in items if name is not None and template is not None}


def _template(path: Path) -> str:
    try:
        text = text_of(path, "utf-8-sig")  # a mark of the byte order is none of the prompt
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", remedy="download it again") from error
    if not text.strip():
        raise CheckpointError(f"{path}: the file is empty", remedy="download it again, or remove it")
    return text
