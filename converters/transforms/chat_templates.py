"""The chat template that goes into the output: the source's own, a family's, a file's, or none."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from converters.architectures.llama_families import FAMILIES, with_family
from converters.checkpoint import TEMPLATE_NOTE, Checkpoint
from converters.metadata.vocabulary import Vocabulary, to_gguf
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.gguf import Value
from edge_llama.host.regular_files import text_of

_MAX_FILE = 1 << 20
_OF_TRAINING = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""Tags of transformers' own, around what the assistant says."""


def with_template(checkpoint: Checkpoint, given: str | os.PathLike[str] | None) -> Checkpoint:
    """The checkpoint with the template that ``given`` means: a family, a file, ``none``; None leaves it as it is.

    Raises OptionError if it is none of these, or a family whose control tokens the vocabulary lacks. What is no Jinja
    is refused too, CheckpointError where it is the source's own; a GGUF source keeps its own, with a warning.
    """
    if given is None:
        return _with_valid_templates(checkpoint)
    name = os.fspath(given)
    if name == "none":
        vocabulary, note = replace(checkpoint.vocabulary, chat_templates={}), "none, as asked"
    elif name in FAMILIES:
        vocabulary, note = with_family(checkpoint.vocabulary, name), f"{name}, as asked"
    else:
        template = _read(Path(name))
        if problem := _problem(template):
            raise OptionError(f"--chat-template {name}: {problem}", remedy="give a Jinja file")
        vocabulary = replace(checkpoint.vocabulary, chat_templates={"default": template})
        note = f"from {name}"
        checkpoint = replace(checkpoint, files=(*checkpoint.files, Path(name)))
    metadata = _with_vocabulary(checkpoint.metadata, vocabulary)
    return replace(
        checkpoint, vocabulary=vocabulary, metadata=metadata, notes={**checkpoint.notes, TEMPLATE_NOTE: note}
    )


def _with_valid_templates(checkpoint: Checkpoint) -> Checkpoint:
    for name, template in checkpoint.vocabulary.chat_templates.items():
        if not (problem := _problem(template)):
            continue
        which = "the chat template" if name == "default" else f"the chat template {name!r}"
        if checkpoint.metadata:
            return replace(checkpoint, warnings=(*checkpoint.warnings, f"{which} {problem}: no chat will go by it"))
        raise CheckpointError(
            f"{_holder(checkpoint)}: {which} {problem}",
            remedy="download it again, or give another: --chat-template FILE|none",
        )
    return checkpoint


def _holder(checkpoint: Checkpoint) -> Path:
    """The file that a template is from, as far as that can be told: a file of its own comes first."""
    ranks = {".jinja": 0, ".json": 1}
    files = [file for file in checkpoint.files if file.suffix == ".jinja" or file.name == "tokenizer_config.json"]
    return min((file for file in files if file.is_file()), key=lambda file: ranks[file.suffix], default=checkpoint.path)


def _problem(template: str) -> str:
    """Why the text is no Jinja, as transformers has it; empty if it is."""
    from jinja2 import Environment, TemplateSyntaxError  # noqa: PLC0415 - takes tens of milliseconds

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_OF_TRAINING.sub("", template))  # noqa: S701 - it only parses
    except TemplateSyntaxError as error:
        return f"is no valid Jinja: line {error.lineno}: {error.message}"
    except RecursionError:
        return "is nested too deeply"
    return ""


def _with_vocabulary(metadata: Mapping[str, Value], vocabulary: Vocabulary) -> Mapping[str, Value]:
    """A GGUF source's own metadata, which a GGUF output keeps, with the new template in place of the old ones."""
    if not metadata:
        return metadata
    others = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.chat_template")}
    fields = to_gguf(vocabulary)
    if (pre := "tokenizer.ggml.pre") not in metadata:  # what the source doesn't say is not said for it
        fields.pop(pre, None)
    return others | fields


def _read(path: Path) -> str:
    where = f"--chat-template {path}"
    if not path.exists():
        raise OptionError(f"{where}: no such file or family", remedy=f"families: {', '.join(FAMILIES)}; or none")
    try:
        if path.stat().st_size > _MAX_FILE:
            raise OptionError(f"{where}: {path.stat().st_size:,} bytes, at most {_MAX_FILE:,} are read")
        return text_of(path, "utf-8-sig", may_be_piped=True)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{where}: cannot be read: {error}", remedy="give a Jinja file in UTF-8") from error
