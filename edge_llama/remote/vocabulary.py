"""The tokenizer of a model that runs elsewhere, and what its publisher put beside it: templates, sampling settings."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge_llama.backends.local_models import found
from edge_llama.backends.registry import engine_of, open_artifact
from edge_llama.backends.towers import locate
from edge_llama.errors import UNREADABLE, ArtifactError
from edge_llama.files.artifact import Recommended
from edge_llama.files.onnx_text import CONFIG as GENAI_CONFIG
from edge_llama.files.tokenizer_folder import TokenizerFolder, has_tokenizer, read_tokenizer_folder
from edge_llama.host.regular_files import opened
from edge_llama.prompts.hf_tokenizer import HFTokenizer
from edge_llama.prompts.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class OpenVocabulary:
    """A tokenizer at work, and what lies with it."""

    tokenizer: Tokenizer
    path: Path
    """The folder or file, which errors about templates name."""
    digest: str
    """Which vocabulary it is: 64 hexadecimal digits."""
    chat_template: str | None
    named_templates: Mapping[str, str]
    sampling: tuple[Recommended, ...]
    warnings: tuple[str, ...] = ()


def open_vocabulary(given: str | os.PathLike[str]) -> OpenVocabulary:
    """That of a checkpoint's folder, else of what an engine opens. ArtifactError names what is wrong."""
    path = found(given)
    if path.is_dir() and has_tokenizer(path) and not (path / GENAI_CONFIG).is_file():
        return _of_folder(path)
    artifact = open_artifact(locate(path))
    return OpenVocabulary(
        engine_of(artifact).vocabulary(artifact),
        artifact.path,
        artifact.identity(),
        artifact.chat_template,
        artifact.named_templates,
        artifact.sampling,
        artifact.warnings,
    )


def _of_folder(path: Path) -> OpenVocabulary:
    folder = read_tokenizer_folder(path)
    tokenizer = _with_ends(HFTokenizer(folder), folder)
    try:
        with opened(folder.tokenizer) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{folder.tokenizer}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    templates = folder.chat_template, folder.named_templates
    return OpenVocabulary(tokenizer, path, digest, *templates, folder.sampling)


def _with_ends(tokenizer: HFTokenizer, folder: TokenizerFolder) -> HFTokenizer:
    """Where no other file names a token that ends an answer, ``eos_token`` of tokenizer_config.json does."""
    if folder.ends:
        return tokenizer
    text = tokenizer.special_texts.get("eos_token", "")
    if (token := tokenizer.control_tokens.get(text)) is None:
        raise ArtifactError(
            f"{folder.path}: no file names a token that ends an answer",
            remedy="copy generation_config.json or config.json of the model into it",
        )
    return HFTokenizer(replace(folder, ends=frozenset({token})))
