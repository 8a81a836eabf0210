"""A tokenizer's files in a folder, with what stands beside them: chat templates, sampling settings, end tokens.

A checkpoint's folder as it is published has them, and every folder with an ONNX model. No weight is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_llama.errors import ArtifactError
from edge_llama.files.artifact import Recommended
from edge_llama.files.json_fields import Fields, read_bytes

SETTINGS, GENERATION, CONFIG = "tokenizer_config.json", "generation_config.json", "config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
MAX_BYTES = 1 << 24  # settings with 2,000 tokens described one by one take half a megabyte
_AGAIN = "copy the whole folder again, or convert again"
_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MOST_TOKENS = 1 << 24


class TokenizerFiles(Protocol):
    """What a tokenizer is opened from."""

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json or tokenizer.model."""

    @property
    def n_vocab(self) -> int | None:
        """Tokens that the model knows; None: those that the tokenizer has."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def settings(self) -> Fields:
        """tokenizer_config.json."""

    @property
    def begins(self) -> int | None:
        """The token that every text must begin with; None: as the other files say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFolder:
    """The tokenizer of a checkpoint's folder, or of one that has nothing else. Keeps :class:`TokenizerFiles`."""

    path: Path
    """The folder."""
    tokenizer: Path
    n_vocab: int | None
    ends: frozenset[int]
    settings: Fields = field(repr=False)
    chat_template: str | None = field(repr=False)
    named_templates: Mapping[str, str] = field(repr=False)
    sampling: tuple[Recommended, ...]
    begins: int | None = None


def read_tokenizer_folder(folder: Path) -> TokenizerFolder:
    """What lies in ``folder``. ArtifactError names the file, the field and the value that is wrong."""
    settings = Fields.read(folder / SETTINGS, MAX_BYTES, _AGAIN)
    named = chat_templates(folder, settings)
    config = _config(folder)
    sized = (each for each in config if each.content.get("vocab_size") is not None)
    n_vocab = next((each.count("vocab_size", _MOST_TOKENS) for each in sized), None)
    return TokenizerFolder(
        path=folder,
        tokenizer=tokenizer_file(folder),
        n_vocab=n_vocab,
        ends=_ends(folder, config, n_vocab or _MOST_TOKENS),
        settings=settings,
        chat_template=named.pop("default", None),
        named_templates=named,
        sampling=published_sampling(folder),
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files lie in ``folder``."""
    return any((folder / name).is_file() for name in TOKENIZERS) and (folder / SETTINGS).is_file()


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer's own file. ArtifactError if there is none."""
    found = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if found is None:
        raise ArtifactError(f"{folder}: holds no {' and no '.join(TOKENIZERS)}", remedy=_AGAIN)
    return found


def chat_templates(folder: Path, settings: Fields) -> dict[str, str]:
    """Chat templates by name: of files of their own, else of tokenizer_config.json, as transformers has it.

    Empty ones are none.
    """
    named: dict[str, Any] = {file.stem: _text(file) for file in more_templates(folder)}
    if (folder / TEMPLATE).is_file():
        named["default"] = _text(folder / TEMPLATE)
    if not named:
        given = settings.content.get("chat_template")
        named = _by_name(given, settings) if isinstance(given, list) else {} if given is None else {"default": given}
    for text in named.values():
        if not isinstance(text, str):
            raise settings.fail("chat_template", f"is {text!r:.100}, expected a text or a list of named ones")
    return {name: text for name, text in named.items() if text}


def more_templates(folder: Path) -> list[Path]:
    """Files of further chat templates, by whose names they are asked for."""
    return sorted((folder / TEMPLATES).glob("*.jinja"))


def published_sampling(folder: Path) -> tuple[Recommended, ...]:
    """The publisher's settings in generation_config.json; none where there is no such file."""
    if not (folder / GENERATION).is_file():
        return ()
    return sampling_of(GENERATION, Fields.read(folder / GENERATION, MAX_BYTES, _AGAIN).content)


def sampling_of(name: str, where: Mapping[str, Any]) -> tuple[Recommended, ...]:
    """The sampling settings among the fields ``where``, which errors call ``name``."""
    options = [option for option in _OPTIONS if where.get(option) is not None]
    return tuple(Recommended(option, f"{name}: {option}", where[option]) for option in options)


def _config(folder: Path) -> tuple[Fields, ...]:
    """config.json and what it says of its text model, where it has several; nothing where there is no such file."""
    if not (folder / CONFIG).is_file():
        return ()
    config = Fields.read(folder / CONFIG, MAX_BYTES, _AGAIN)
    return config, config.within("text_config")


def _ends(folder: Path, config: Sequence[Fields], n_vocab: int) -> frozenset[int]:
    """Of generation_config.json and config.json; none where both are silent."""
    generation = folder / GENERATION
    described = [Fields.read(generation, MAX_BYTES, _AGAIN)] if generation.is_file() else []
    return frozenset(token for each in (*described, *config) for token in each.ids("eos_token_id", n_vocab))


def _by_name(given: Sequence[Any], settings: Fields) -> dict[str, Any]:
    for entry in given:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise settings.fail("chat_template", f"has {entry!r:.100}, expected an object with name and template")
    return {entry["name"]: entry.get("template") for entry in given}


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_BYTES, _AGAIN).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not UTF-8: {error}", remedy=_AGAIN) from error
