"""The chat templates of a folder: which file has which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from edge_llama.errors import CheckpointError


def more_templates(folder: Path) -> list[Path]:
    """The files of named templates beside ``chat_template.jinja``."""
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: in tokenizer_config.json, or in files of their own as newer checkpoints have them."""
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given}
        return {name: template for name, template in named.items() if name is not None and template is not None}
    if isinstance(given, str):
        return {"default": given}
    jinja, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return {"default": _template(jinja)} | {file.stem: _template(file) for file in more_templates(folder)}
    template = read_json(older).get("chat_template") if older.is_file() else None
    return {"default": template} if isinstance(template, str) else {}


def _template(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", remedy="download it again") from error
