"""A LoRA adapter's folder as peft saves it, merged into a checkpoint: its numbers while they stream, and how it talks.

A merged tensor is read as ``base + scale * (B @ A)`` in float32 and handed on as float32, whatever the base's format:
rounding happens once, in the output's format. An f32 merge equals peft's ``merge_and_unload`` to its last bits
(1e-6). peft merges a bf16 base in bf16 and rounds the product as well as the sum: there the two agree within one
bf16 step of the largest number involved. Rows are merged in Hugging Face's order, before an architecture changes it.

Linear layers, embeddings, DoRA, biases, single tokens and whole modules (``modules_to_save``) are merged, and the
folder's tokenizer and chat template are used; whatever else it holds is told, or refused where it would be lost.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from converters.checkpoint import Checkpoint, Tensor
from converters.tokenizers.reader import tokenizer_files
from converters.transforms.lora import config as configs
from converters.transforms.lora import contents
from converters.transforms.lora.base import Base, with_settings
from converters.transforms.lora.checks import check, follows_embedding
from converters.transforms.lora.config import Config
from converters.transforms.lora.contents import Contents
from converters.transforms.lora.merging import Merger
from converters.transforms.lora.vocabulary import with_vocabulary
from edge_llama.errors import CheckpointError

_NOTE, _FILES_NOTE = "adapter", "adapter's files"
_MOST_NAMED = 5
_FOR_A_MODEL = (".json", ".jinja", ".safetensors", ".bin", ".pt", ".pth", ".model")
_OF_TRAINING = re.compile(
    r"(training_args\.bin|trainer_state\.json|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth|"
    r"(all|train|eval|predict|test)_results\.json)"
)


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """``checkpoint`` with the adapter in ``folder`` merged into its tensors.

    Nothing but headers is read yet, except where an adapter or config.json holds both the embedding and the head of a
    tied base: these are compared. Raises CheckpointError, naming field or tensor, for what isn't understood, is
    missing, left over or doesn't fit.
    """
    base, config = Base(checkpoint), Config.read(folder)
    held = contents.read(folder, base.names)
    check(base, config, held)
    merged = Merger(base, config, held).tensors()
    ended = _with_ends(base, merged, config)
    files = [folder / configs.FILE, folder / contents.FILE, *tokenizer_files(folder)]
    talking = with_vocabulary(ended, folder, base.rows)
    return replace(
        talking,
        files=(*checkpoint.files, *files),
        warnings=checkpoint.warnings + _warnings(base, Base(ended), config, held),
        notes={**talking.notes, **_notes(config, held), **unused_files(folder, files)},
    )


def _with_ends(base: Base, merged: Mapping[str, Tensor], config: Config) -> Checkpoint:
    """The checkpoint with what was merged, and a config that tells of its embedding and head."""
    checkpoint = base.checkpoint
    changed = dict(merged)
    settings: dict[str, object] = {}
    if base.head in merged and base.embedding in merged and base.is_tied:
        if merged[base.head].read != merged[base.embedding].read:
            settings["tie_word_embeddings"] = False
        elif base.head not in checkpoint.tensors:
            del changed[base.head]
    tensors = {**checkpoint.tensors, **changed}
    if base.embedding in merged or base.head in merged:
        rows = _rows(base, tensors, config)
        settings |= {"vocab_size": rows} if rows != base.rows else {}
    return replace(checkpoint, tensors=tensors, config=with_settings(checkpoint.config, **settings))


def _rows(base: Base, tensors: Mapping[str, Tensor], config: Config) -> int:
    """Those of embedding and head, which must have as many."""
    sizes = {name: tensors[name].shape[0] for name in (base.embedding, base.head) if name in tensors}
    if len(set(sizes.values())) > 1:
        told = " and ".join(f"{name!r} {size:,}" for name, size in sizes.items())
        raise CheckpointError(
            f"{config.fields.where}: with the adapter {told} rows: its vocabulary is of another size than the base's",
            remedy="save it with modules_to_save for both, embed_tokens and lm_head",
        )
    return next(iter(sizes.values()))


def _warnings(base: Base, ended: Base, config: Config, held: Contents) -> tuple[str, ...]:
    """What a person should know: an adapter was trained on one set of weights, in one way."""
    found = []
    merged = [f"{module}.weight" for module, parts in held.parts.items() if "A" in parts]
    if quantized := sum(base.tensor(name).format.is_quantized for name in merged):
        found.append(
            f"the adapter is merged into {quantized} quantized tensors; the full-precision base would be more exact"
        )
    apart = _trained_apart(base, config, held)
    if apart and base.is_tied and ended.is_tied:
        found.append(
            f"embedding and head of this base are one matrix, and the adapter changes it for {' and '.join(apart)}: "
            "merged as peft's merge_and_unload does it, which answers otherwise than the adapter beside its base"
        )
    return (*found, *missing_biases(base, config, held))


def missing_biases(base: Base, config: Config, held: Contents) -> tuple[str, ...]:
    """A warning where biases were trained and not saved."""
    if not config.has_biases or any(name.endswith(".bias") for name in held.wholes) or not _has_biases(base):
        return ()
    told = f"{configs.FILE} says that biases were trained ({config.content['bias']}), and the adapter holds none"
    return (f"{told}: the base's stay",)


def _trained_apart(base: Base, config: Config, held: Contents) -> list[str]:
    """Ends of a tied base that had matrices of their own in training, or a head that had rows of its own."""
    ends = [name.removesuffix(".weight") for name in (base.embedding, base.head)]
    apart = [end for end in ends if "A" in held.parts.get(end, {})]
    if "rows" in held.parts.get(ends[1], {}) and not follows_embedding(base, config, held, ends[1]):
        apart.append(ends[1])
    return [repr(end) for end in apart]


def _has_biases(base: Base) -> bool:
    return any(name.endswith(".bias") for name in base.names)


def _notes(config: Config, held: Contents) -> dict[str, str]:
    """Tensors that replace the base's though the config doesn't name them: peft loads them as well."""
    others = [
        name
        for name in held.wholes
        if not config.saves(held.root.of_trained(name.rpartition(".")[0]))
        and not (config.has_biases and name.endswith(".bias"))
        and f"{name.rpartition('.')[0]}" not in held.parts
    ]
    if not others:
        return {}
    named = ", ".join(others[:_MOST_NAMED]) + (", ..." if len(others) > _MOST_NAMED else "")
    return {_NOTE: f"{len(others)} tensors that {configs.FILE} doesn't name stand in place of the base's: {named}"}


def unused_files(folder: Path, used: Collection[Path]) -> dict[str, str]:
    """A note on what else lies there that could be meant for the model."""
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in _FOR_A_MODEL and path not in used and not _OF_TRAINING.fullmatch(path.name)
    )
    return {_FILES_NOTE: f"not used: {', '.join(others)}"} if others else {}
