"""Which structure the tokenizer files of a Hugging Face folder must have, as far as they are read.

Checked once, where a file is opened: the reader may then take what it needs without asking again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from edge_llama.errors import CheckpointError

Schema = Any
"""A type; None; ``[schema]`` for a list of such; ``{"key": schema}`` for an object, ``{str: schema}`` for one with any
keys; a tuple of alternatives that differ in type. A key that is missing counts as None."""

_TOKEN = (None, str, {"content": str})
_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), (None, bool))
_PIECE = {"SpecialToken": (None, {"id": str}), "Sequence": (None, {"id": str})}
_STEP = {"type": (None, str), "single": (None, [_PIECE]), "pair": (None, [_PIECE])}
_TEMPLATES = (None, str, [{"name": (None, str), "template": (None, str)}], {str: (None, str)})
TOKENIZER: Schema = {
    "added_tokens": (None, [{"id": int, "content": str, "special": (None, bool)} | _FLAGS]),
    "post_processor": (None, _STEP | {"processors": (None, [_STEP])}),
}
"""tokenizer.json; ``model`` and what stands before it matter only where there is no tokenizer.model."""
MODEL: Schema = {
    "model": {
        "type": (None, str),
        "byte_fallback": (None, bool),
        "ignore_merges": (None, bool),
        "unk_token": (None, str),
        "continuing_subword_prefix": (None, str),
        "end_of_word_suffix": (None, str),
    },
    "normalizer": (None, dict),
    "pre_tokenizer": (None, dict),
}
_ROLES = {f"{kind}_token": _TOKEN for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
_MORE_TOKENS = {
    "additional_special_tokens": (None, [_TOKEN]),
    "extra_special_tokens": (None, [_TOKEN], {str: _TOKEN}),
}
SETTINGS: Schema = {
    **_ROLES,
    **{f"add_{kind}_token": (None, bool) for kind in ("bos", "eos", "sep")},
    "add_prefix_space": (None, bool),
    **_MORE_TOKENS,
    "added_tokens_decoder": (None, {str: {"content": str, "special": (None, bool)} | _FLAGS}),
    "legacy": (None, bool),
    "chat_template": _TEMPLATES,
}
"""tokenizer_config.json."""
SPECIAL_MAP: Schema = _ROLES | _MORE_TOKENS
"""special_tokens_map.json."""
PROCESSOR: Schema = {"chat_template": _TEMPLATES}
"""processor_config.json and chat_template.json."""
_NAMES = {int: "an integer", str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "null"}


def read_checked(path: Path, schema: Schema) -> dict[str, Any]:
    """The JSON object in ``path``, {} if there is no such file; CheckpointError names the field that doesn't fit."""
    content = read_json(path) if path.is_file() else {}
    if content:
        check_fields(path, content, schema)
    return content


def check_fields(path: Path, content: Mapping[str, Any], schema: Schema) -> None:
    """Check the object in ``path`` by the keys of ``schema``."""
    for key, inner in schema.items():
        _check(content.get(key), inner, f"{path}: {key}")


def _check(value: Any, schema: Schema, where: str) -> None:
    choices = schema if isinstance(schema, tuple) else (schema,)
    for choice in choices:
        if type(value) is _outer(choice):
            _check_inside(value, choice, where)
            return
    found = "missing" if value is None else f"{value!r:.100}"
    expected = " or ".join(_NAMES[_outer(choice)] for choice in choices)
    raise CheckpointError(f"{where} is {found}, expected {expected}", remedy="download it again")


def _outer(schema: Schema) -> type:
    return schema if isinstance(schema, type) else type(schema)


def _check_inside(value: Any, schema: Schema, where: str) -> None:
    if isinstance(schema, list):
        for at, item in enumerate(value):
            _check(item, schema[0], f"{where}[{at}]")
    elif isinstance(schema, dict):
        named = {key: inner for key, inner in schema.items() if key is not str}
        for key in value if str in schema else ():
            _check(value[key], schema[str], f"{where}[{key!r}]")
        for key, inner in named.items():
            _check(value.get(key), inner, f"{where}.{key}")
