"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json, and SHA256SUMS."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from converters.architectures import for_config
from converters.architectures.llama4_vision import PREPROCESSORS
from converters.checkpoint import Checkpoint
from converters.folder_files import encoded, generation, special_ids
from converters.layout import Entry, Layout
from converters.options import Options, flag
from converters.targets.safetensors import shards, w4a16
from converters.targets.writers import check_heeded, with_quant
from converters.tokenizers.writer import write_files
from edge_llama.errors import UNREADABLE, CheckpointError, OptionError
from edge_llama.files import checksums
from edge_llama.files.formats import FORMATS
from edge_llama.files.manifest import StoredFile
from edge_llama.host.regular_files import content_of

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_QUANTS = (*_DTYPES, w4a16.NAME)
_DEFAULT_QUANT = "bf16"
_DTYPE_KEYS, _TOWERS = ("dtype", "torch_dtype"), ("text_config", "vision_config")
_OF_W4A16 = ("group", "scale_dtype")
_HEEDED = ("quant", "tensor_types", "max_shard_bytes", "chat_template", "lora")
"""Some of them only to say what is for GGUF instead."""


class Safetensors:
    """A folder that transformers loads, with all that the checkpoint has."""

    own_options = _OF_W4A16

    def chosen(self, options: Options, _towers: Collection[str]) -> Options:
        """With a format."""
        if options.tower not in (None, "all"):
            raise OptionError(
                f"--tower {options.tower}: not for safetensors", remedy="leave it out: the folder is whole"
            )
        check_heeded(options, _HEEDED, has_vision=False)
        options = with_quant(options, "safetensors", _QUANTS, _DEFAULT_QUANT)
        for role, format_name in options.tensor_types.items():
            raise OptionError(
                f"--tensor-type {role}={format_name}: not for safetensors, whose weights have one format",
                remedy="leave it out, or write a .gguf file",
            )
        for name in _OF_W4A16 if options.quant != w4a16.NAME else ():
            if getattr(options, name) is not None:
                raise OptionError(f"{flag(name)}: is for --quant {w4a16.NAME} alone", remedy="leave it out")
        w4a16.check(options)
        return options

    def lay_out(self, checkpoint: Checkpoint, _name: str, options: Options) -> Layout:
        """The folder of ``checkpoint``."""
        return _laid_out(checkpoint, options, _small_files(checkpoint))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The folder in each format that fits its shapes."""
        small = _small_files(checkpoint)
        found: dict[str, int] = {}
        for quant in _QUANTS:
            try:
                found[quant] = _laid_out(checkpoint, Options(quant=quant), small).output_bytes
            except OptionError:
                continue
        return found


SAFETENSORS = Safetensors()


def _laid_out(checkpoint: Checkpoint, options: Options, small: Mapping[str, bytes]) -> Layout:
    is_packed = options.quant == w4a16.NAME
    stored = _packed(checkpoint, options) if is_packed else _plain(checkpoint, options.quant or _DEFAULT_QUANT)
    parts = shards.parts([stored.units[name] for name in sorted(stored.units)], options.max_shard_bytes)
    generated = generation(checkpoint)
    configs = {
        "config.json": {**_config(checkpoint, generated, _DTYPES[stored.dtype]), **stored.told},
        "generation_config.json": generated,
        **shards.index(parts),
    }
    written = {name: encoded(content, name, checkpoint) for name, content in configs.items()}
    return Layout(parts, {**written, **small, **checkpoint.provenance.notices}, is_folder=True, closing=_closing)


class _Stored(NamedTuple):
    """What is stored, by the name of the source's tensor, the dtype of floats, and what config.json says of it."""

    units: Mapping[str, shards.Unit]
    dtype: str
    told: Mapping[str, Any]


def _plain(checkpoint: Checkpoint, quant: str) -> _Stored:
    tensors = for_config(checkpoint).folder_tensors(checkpoint)
    return _Stored({name: (Entry(tensor, FORMATS[quant]),) for name, tensor in tensors.items()}, quant, {})


def _packed(checkpoint: Checkpoint, options: Options) -> _Stored:
    architecture = for_config(checkpoint)
    tensors = architecture.serving_tensors(checkpoint)
    scheme = w4a16.choose(tensors, architecture, options)
    told = {"quantization_config": scheme.config(architecture.kept_modules)}
    return _Stored(dict(w4a16.units(tensors, scheme)), scheme.scales.name, told)


def _small_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The tokenizer's files, which take most of the time of a plan, and the image processor's."""
    files = write_files(checkpoint.vocabulary, checkpoint.path)
    return {name: encoded(content, name, checkpoint) for name, content in files.items()} | _preprocessors(checkpoint)


def _preprocessors(checkpoint: Checkpoint) -> dict[str, bytes]:
    """How pictures become pixels, as the source says it: an engine of fleets doesn't load two towers without."""
    found = [path for path in checkpoint.files if path.name in PREPROCESSORS and path.is_file()]
    try:
        return {path.name: content_of(path) for path in found}
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.path}: {error.filename} cannot be read: {error.strerror}", remedy=UNREADABLE
        ) from error


def _closing(files: Mapping[str, StoredFile]) -> dict[str, bytes]:
    return {checksums.NAME: checksums.encode(files)}


def _config(checkpoint: Checkpoint, generated: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json: the source's, with the ids of special tokens where it has none, and the dtype of this folder.

    The ids are those of ``generated``, generation_config.json: files that differ are told when the folder is read.
    """
    ids = {key: generated[key] for key in special_ids(checkpoint.vocabulary)}
    towers = {key: _told(tower, dtype) for key, tower in checkpoint.config.items() if key in _TOWERS}
    return {**ids, **checkpoint.config, **towers, **dict.fromkeys(_DTYPE_KEYS, dtype)}


def _told(tower: Any, dtype: str) -> Any:
    """A tower's own config, with the dtype where it says one."""
    return {**tower, **{key: dtype for key in _DTYPE_KEYS if key in tower}} if isinstance(tower, dict) else tower
