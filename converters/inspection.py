"""What a checkpoint is, from its headers: for people who have not decided yet what to make of it. No weight is read.

What can't be converted is described as well, as far as its files tell, with the reason; what one target refuses is
told beside what the others would take.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint, read_json, text_config
from converters.layout import Layout
from converters.options import Options
from converters.proof import prove
from converters.sources import fingerprint, open_checkpoint
from converters.sources.safetensors import read_entries
from converters.sources.torch_file import read_views
from converters.sources.torch_pickle import Storage
from converters.target import FolderTarget, Sized, TowerWriter
from converters.targets import FOLDERS, has_vision
from converters.targets.writers import TEXT, VISION
from converters.tokenizers.proof import GGUFEncoder
from converters.transforms.chat_templates import with_template
from edge_llama.errors import InputError
from edge_llama.files.checkpoint_folder import ADAPTER

_CONFIG = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "feed-forward width": "intermediate_size",
    "heads": "num_attention_heads",
    "KV heads": "num_key_value_heads",
    "head width": "head_dim",
    "experts": "num_local_experts",
    "context": "max_position_embeddings",
    "sliding window": "sliding_window",
    "vocabulary": "vocab_size",
    "tied head": "tie_word_embeddings",
}
_PARAMS = {
    "layers": "n_layers",
    "width": "dim",
    "heads": "n_heads",
    "KV heads": "n_kv_heads",
    "vocabulary": "vocab_size",
    "quantization": "quantization_args",
    "adapter inside": "lora_args",
}
_ADAPTER = {
    "kind": "peft_type",
    "base": "base_model_name_or_path",
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "saved whole": "modules_to_save",
    "rsLoRA": "use_rslora",
    "DoRA": "use_dora",
}
_TOKENIZERS = {"llama": "sentencepiece", "gpt2": "byte-level BPE"}


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors of one number format: how many, their numbers and their bytes."""

    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A target's sizes in bytes, by recipe or format; or the reason why it refuses, and then no sizes."""

    target: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    refused: InputError | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint or an adapter; ``facts`` are what its config says, as it says it.

    ``family`` is "" where the files don't tell; ``problem`` is why it can't be opened, and then there is no
    ``checkpoint``. ``templates`` are names of chat templates with their texts' lengths.
    """

    path: Path
    kind: str
    name: str
    family: str
    facts: Mapping[str, Any]
    stored: Mapping[str, Stored]
    tokenizer: str = ""
    templates: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    problem: InputError | None = None

    def offers(self, encode_gguf: GGUFEncoder | None = None) -> Iterator[Offer]:
        """What each target would take, of two towers each for itself; a second or more for a large vocabulary.

        With ``encode_gguf`` also what the proof of the tokenizer refuses: see :func:`converters.plan`.
        """
        if self.checkpoint is None:
            return
        is_pair = has_vision(self.checkpoint)
        for name, writer in TEXT.items():
            called = f"text, {name}" if is_pair else name
            yield _offer(called, writer, self.checkpoint, _tower(writer), encode_gguf)
        for name, writer in VISION.items() if is_pair else ():
            yield _offer(f"vision, {name}", writer, self.checkpoint)
        for name, folder in FOLDERS.items():
            yield _offer(name, folder, self.checkpoint, _folder(folder), encode_gguf)


def inspect_checkpoint(folder: Path) -> Inspection:
    """The checkpoint or adapter in ``folder``. CheckpointError where not even its config can be read."""
    if not any((folder / name).is_file() for name in ("config.json", "params.json")) and (folder / ADAPTER).is_file():
        return _adapter(folder)
    try:
        checkpoint = with_template(open_checkpoint(folder), None)
        fingerprint(checkpoint.files)
    except InputError as problem:
        return _unopened(folder, problem)
    files = [file for file in checkpoint.files if file.is_file()]
    return Inspection(
        folder,
        "checkpoint",
        checkpoint.name,
        _family(checkpoint.config),
        _facts(text_config(checkpoint.config), _CONFIG),
        _stored(files),
        _tokenizer(checkpoint),
        {name: len(text) for name, text in checkpoint.vocabulary.chat_templates.items()},
        checkpoint.notes,
        checkpoint.warnings,
        checkpoint,
    )


def _unopened(folder: Path, problem: InputError) -> Inspection:
    """What the config says, in whichever of the two forms, and what the weights' headers do."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        family, facts = _family(config), _facts(text_config(config), _CONFIG)
    elif (folder / "params.json").is_file():
        family, facts = "", _facts(read_json(folder / "params.json"), _PARAMS)
    else:
        raise problem
    files = [file for file in folder.iterdir() if file.is_file()]
    return Inspection(folder, "checkpoint", folder.name, family, facts, _stored(files), problem=problem)


def _adapter(folder: Path) -> Inspection:
    config = read_json(folder / ADAPTER)
    brought = sorted(name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file())
    facts = _facts(config, _ADAPTER)
    return Inspection(folder, "adapter", folder.name, "", facts, _stored(folder.iterdir()), ", ".join(brought))


def _family(config: Mapping[str, Any]) -> str:
    """By the class that transformers would load, else by the model's type."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type") or "")


def _facts(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {name: _short(config[key]) for name, key in keys.items() if config.get(key) is not None}


def _short(value: Any) -> Any:
    """What JSON can hold on a line: values come as the file has them, of any type."""
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return value
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else f"{value!r:.200}"


def _tokenizer(checkpoint: Checkpoint) -> str:
    vocabulary = checkpoint.vocabulary
    kind = _TOKENIZERS.get(vocabulary.model, vocabulary.model)
    return f"{kind} ({vocabulary.pre}), {len(vocabulary.tokens):,} tokens"


def _stored(files: Iterable[Path]) -> dict[str, Stored]:
    """What the headers of weights tell, by number format; of a file that is damaged nothing."""
    counts: dict[str, Counter[str]] = {}
    for dtype, weights, nbytes in (entry for file in sorted(files) for entry in _entries(file)):
        counts.setdefault(dtype, Counter()).update(tensors=1, weights=weights, nbytes=nbytes)
    return {dtype: Stored(**count) for dtype, count in counts.items()}


def _entries(file: Path) -> Iterator[tuple[str, int, int]]:
    """Format, numbers and bytes of each tensor that the file describes as it should."""
    try:
        if file.suffix == ".safetensors":
            for entry in read_entries(file)[0].values():
                begin, end = entry["data_offsets"]
                yield str(entry["dtype"]), prod(entry["shape"]), end - begin
        elif file.suffix in (".pth", ".pt", ".bin"):
            for view in read_views(file).values():
                if isinstance(view.storage, Storage):
                    weights = prod(view.shape)
                    yield view.storage.dtype, weights, weights * _ITEM_BYTES.get(view.storage.dtype, 1)
    except (InputError, TypeError, KeyError, ValueError, AttributeError):
        return


_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Double": 8, "Long": 8, "Int": 4, "Short": 2}


def _offer(
    target: str,
    sized: Sized,
    checkpoint: Checkpoint,
    layout: Callable[[Checkpoint], Layout] | None = None,
    encode_gguf: GGUFEncoder | None = None,
) -> Offer:
    """``layout``: what is written by default, where a tokenizer is part of it."""
    try:
        sizes = sized.sizes(checkpoint)
        if encode_gguf is not None and layout is not None:
            prove(checkpoint, layout(checkpoint), encode_gguf)
    except InputError as problem:
        return Offer(target, refused=problem)
    return Offer(target, sizes)


def _tower(writer: TowerWriter) -> Callable[[Checkpoint], Layout]:
    def lay_out(checkpoint: Checkpoint) -> Layout:
        files = writer.files(checkpoint, Options())
        return Layout(files.parts, files.files, is_folder=True)

    return lay_out


def _folder(target: FolderTarget) -> Callable[[Checkpoint], Layout]:
    return lambda checkpoint: target.lay_out(checkpoint, "", Options())
