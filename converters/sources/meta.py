"""Folders as Meta publishes them: consolidated.00.pth and on, params.json, tokenizer.model.

Several .pth files are the shares of as many GPUs (tensor parallel): matrices are cut by rows or by columns, norms are
whole in each. How one was cut follows from its shape and its shares', so shares are joined while rows are read.
Meta's rotary embedding pairs neighbouring rows of Q and K; a Checkpoint has Hugging Face's halves.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.architectures import MetaFamily, for_meta
from converters.architectures.llama4_vision import PREPROCESSORS
from converters.architectures.llama_families import with_family
from converters.architectures.meta import EMBEDDING, OUTPUT
from converters.checkpoint import TEMPLATE_NOTE, Checkpoint, Tensor, read_json
from converters.metadata.provenance import provenance_files, read_provenance
from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.sources.safetensors import DTYPES
from converters.sources.torch_file import read_file
from converters.tensors.joined import joined
from converters.tokenizers.reader import read_sentencepiece
from converters.tokenizers.tiktoken_ranks import is_ranks, read_ranks
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.formats import FORMATS
from edge_llama.host.regular_files import content_of

_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")
_TOKENIZER = "tokenizer.model"
_MAX_TOKENIZER = 64 << 20
_SLICE = 4 << 20  # bytes compared at once


def is_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a model in Meta's format."""
    return (folder / "params.json").is_file() or bool(_shard_names(folder))


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, in Hugging Face's terms.

    Weights are not read, but for the beginning of the output matrix: while it equals the embedding, it is compared.
    Raises CheckpointError naming file and tensor or field.
    """
    if not (folder / "params.json").is_file():
        raise CheckpointError(f"{folder}: params.json is missing", remedy="download it too")
    family = for_meta(read_json(folder / "params.json"), folder)
    path, ranks = _tokenizer(folder)
    names = _shard_names(folder)
    stored = _shards(folder, names, family)
    shards = [family.split(shard, folder) for shard in stored]
    _check_known(family, folder, shards)
    n_vocab = _n_vocab(family, folder, shards)
    _check_width(family, folder, shards)
    merged = {name: _merged(name, family, n_vocab, folder, shards) for name in shards[0]}
    vocabulary = _vocabulary(path, ranks, n_vocab, family)
    tied = _is_tied(merged)
    if tied:
        del merged[OUTPUT]
    config = family.config(vocabulary, tied=tied)
    checkpoint = Checkpoint(
        folder,
        _name(folder),
        config,
        family.hugging_face(merged),
        vocabulary,
        generation={},
        files=_files(folder, names, path),
        notes=family.notes(config, stored[0]) | _padding_note(path, vocabulary),
        warnings=family.warnings,
        provenance=read_provenance(folder),
    )
    return _with_default_template(checkpoint, family.template(vocabulary))


def _files(folder: Path, shards: Sequence[str], tokenizer: Path) -> tuple[Path, ...]:
    own = [folder / name for name in ("params.json", _TOKENIZER, *shards, *PREPROCESSORS)]
    return (*sorted((*own, *provenance_files(folder))), tokenizer)


def _shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("consolidated.*.pth") if _SHARD.fullmatch(path.name))


def _shards(folder: Path, names: Sequence[str], family: MetaFamily) -> list[dict[str, Tensor]]:
    """The tensors of consolidated.00.pth, .01.pth, ...: the same names in each."""
    expected = [f"consolidated.{index:02}.pth" for index in range(max(len(names), 1))]
    if missing := [name for name in expected if name not in names]:
        raise CheckpointError(f"{folder}: {missing[0]} is missing", remedy="download it too")
    dtypes = DTYPES | ({"Char": FORMATS["i8"]} if family.has_integers else {})
    shards = [read_file(folder / name, family.ignored, dtypes) for name in names]
    for name, shard in zip(names, shards, strict=True):
        if odd := sorted(shards[0].keys() ^ shard.keys()):
            has, lacks = (names[0], name) if odd[0] in shards[0] else (name, names[0])
            raise CheckpointError(
                f"{folder / lacks}: tensor {odd[0]!r} is missing, {has} has it", remedy="download it again"
            )
    return shards


def _check_known(family: MetaFamily, folder: Path, shards: Sequence[Mapping[str, Tensor]]) -> None:
    if unknown := [name for name in shards[0] if not family.is_known(name)]:
        raise CheckpointError(
            f"{folder}: tensor {unknown[0][:200]!r} is not part of a {family.name} in Meta's format",
            remedy=family.remedy,
        )


def _n_vocab(family: MetaFamily, folder: Path, shards: Sequence[Mapping[str, Tensor]]) -> int:
    """Rows of the whole embedding: cut by columns in Llama 2, by rows since Llama 3."""
    parts = _parts(EMBEDDING, folder, shards)
    whole_rows = all(len(part.shape) == 2 and part.columns == family.dim for part in parts)
    n_vocab = sum(part.rows for part in parts) if whole_rows else parts[0].rows
    if family.n_vocab not in (None, n_vocab):
        raise family.fields.fail(
            "vocab_size",
            f"is {family.n_vocab}, the embedding has {n_vocab} rows",
            "a shard is missing or too many, or dim is wrong",
        )
    return n_vocab


def _check_width(family: MetaFamily, folder: Path, shards: Sequence[Mapping[str, Tensor]]) -> None:
    if family.gate is None:
        return
    width = sum(part.shape[0] for part in _parts(family.gate, folder, shards))
    if width != family.n_ff:
        raise family.fields.fail(
            "dim, multiple_of and ffn_dim_multiplier",
            f"give a feed-forward width of {family.n_ff}, the weights have {width}",
            "one of them is missing or wrong, or a shard is missing",
        )


def _parts(name: str, folder: Path, shards: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    if name not in shards[0]:
        raise CheckpointError(f"{folder}: tensor {name!r} is missing", remedy="the download may be incomplete")
    return [shard[name] for shard in shards]


def _merged(
    name: str, family: MetaFamily, n_vocab: int, folder: Path, shards: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """A tensor whole, read from all its shares."""
    parts = _parts(name, folder, shards)
    shape = family.shape(name, n_vocab)
    if len({part.format for part in parts}) > 1:
        raise CheckpointError(f"{folder}: tensor {name!r} has several dtypes", remedy="download it again")
    may_repeat = len(parts) == 1 or family.is_whole(name, shape)
    tensor = _whole(parts[:: family.copies(name, len(parts))], shape, may_repeat=may_repeat)
    if tensor is None:
        found = ", ".join(str(list(part.shape)) for part in parts)
        raise CheckpointError(
            f"{folder}: tensor {name!r} has the shapes {found} in {len(parts)} shards, "
            f"params.json implies {list(shape)} together",
            remedy="a shard is missing, or of another model",
        )
    return tensor


def _whole(parts: Sequence[Tensor], shape: tuple[int, ...], *, may_repeat: bool) -> Tensor | None:
    """The tensor of ``shape`` that the shares make, or that each of them is; None if they don't."""
    shapes = [part.shape for part in parts]
    if may_repeat and set(shapes) == {shape}:
        return parts[0]
    for axis in range(len(shape)):
        rest = {(*found[:axis], *found[axis + 1 :]) for found in shapes}
        is_cut_here = all(len(found) == len(shape) for found in shapes) and rest == {shape[:axis] + shape[axis + 1 :]}
        if len(parts) > 1 and is_cut_here and sum(found[axis] for found in shapes) == shape[axis]:
            return joined(parts, axis)
    return None


def _is_tied(merged: Mapping[str, Tensor]) -> bool:
    """Whether the output matrix is the embedding, which Llama 3.2 1B and 3B hold twice.

    Compared until the first difference: at once where they differ.
    """
    embedding, output = merged.get(EMBEDDING), merged.get(OUTPUT)
    if embedding is None or output is None or embedding.format != output.format:
        return False
    rows = max(_SLICE // embedding.format.row_bytes(embedding.columns), 1)
    for start in range(0, embedding.rows, rows):
        stop = min(start + rows, embedding.rows)
        if not np.array_equal(embedding.read(start, stop), output.read(start, stop)):
            return False
    return True


def _tokenizer(folder: Path) -> tuple[Path, bytes]:
    """tokenizer.model: in the folder, or beside it as Llama 2's download puts it."""
    for path in (folder / _TOKENIZER, folder.absolute().parent / _TOKENIZER):
        if path.is_file():
            if path.stat().st_size > _MAX_TOKENIZER:
                raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes, at most {_MAX_TOKENIZER:,} are read")
            try:
                return path, content_of(path)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    raise CheckpointError(f"{folder}: tokenizer.model is missing", remedy="download it too")


def _vocabulary(path: Path, content: bytes, n_vocab: int, family: MetaFamily) -> Vocabulary:
    """Ranks of tiktoken (since Llama 3) or pieces of sentencepiece (Llama 2), padded as the embedding is."""
    if not is_ranks(content) and family.has_sentencepiece:
        return read_sentencepiece(path, n_vocab)
    known = family.tokens
    vocabulary = read_ranks(content, path, known.pre, known.special, n_vocab)
    special = {kind: vocabulary.tokens.index(text) for kind, text in known.kinds.items()}
    return replace(vocabulary, special=special, add={"bos": True, "eos": False, "sep": False})


def _name(folder: Path) -> str:
    """The model's name: the folder's, or in a Hugging Face repository (``.../original``) that of the repository."""
    for part in (folder.absolute(), *folder.absolute().parents):
        if part.name.startswith("models--"):
            return part.name.rpartition("--")[2]
        if part.name not in ("original", "snapshots", "") and not re.fullmatch(r"[0-9a-f]{40}", part.name):
            return part.name
    return "llama"


def _padding_note(path: Path, vocabulary: Vocabulary) -> dict[str, str]:
    unused = sum(kind == TokenType.UNUSED for kind in vocabulary.types)
    return {"vocabulary": f"{path} has {unused:,} tokens less than the embedding has rows"} if unused else {}


def _with_default_template(checkpoint: Checkpoint, family: str) -> Checkpoint:
    """The family's chat template if the folder's name says that the model is made for chatting."""
    if not re.search(r"chat|instruct", checkpoint.name, re.IGNORECASE):
        note = (
            f"none, as the name {checkpoint.name!r} says neither chat nor instruct (--chat-template {family} adds one)"
        )
        return replace(checkpoint, notes={**checkpoint.notes, TEMPLATE_NOTE: note})
    note = f"{family}, by the name {checkpoint.name!r} (--chat-template changes it)"
    vocabulary = with_family(checkpoint.vocabulary, family)
    return replace(checkpoint, vocabulary=vocabulary, notes={**checkpoint.notes, TEMPLATE_NOTE: note})
