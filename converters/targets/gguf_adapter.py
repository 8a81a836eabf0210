"""A LoRA adapter as a GGUF file of its own, to be opened beside its base: ``convert ADAPTER OUTPUT.gguf --base BASE``.

llama.cpp adds ``alpha / r * (B @ A)`` with one alpha for all modules, r being each pair's own. Where an adapter says
otherwise (rsLoRA, ``alpha_pattern``) what is missing is multiplied into B. All that is no product of two small matrices
can't be expressed (whole modules, biases, tokens trained by themselves, DoRA) and is refused by name: ``--lora`` merges
it. Rows of B are in the order of the base's rows in GGUF. Sources: ``convert_lora_to_gguf.py``, ``llama-adapter.cpp``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.architectures import Place, for_config
from converters.architectures.hyperparameters import Hyperparameters
from converters.checkpoint import Checkpoint, Tensor
from converters.layout import Entry, Layout
from converters.metadata.provenance import provenance_files, read_provenance
from converters.options import Options, flag
from converters.targets import gguf
from converters.tensors.transposed import transposed
from converters.transforms.lora import config as configs
from converters.transforms.lora import contents, missing_biases, unused_files
from converters.transforms.lora.base import Base
from converters.transforms.lora.checks import check
from converters.transforms.lora.config import Config
from converters.transforms.lora.contents import Contents
from converters.transforms.lora.products import Pair, finite
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.formats import F16, F32, FORMATS, Format
from edge_llama.files.gguf import SUFFIX, Value, f32, is_named_gguf, string, u32
from edge_llama.files.gguf_adapter import ALPHA, KIND, TYPE, TYPE_KEY
from quant.kernels import recode

QUANTS = ("f32", "f16", "bf16", "q8_0")
_OPTIONS = ("quant", "to", "base", "allow_nonfinite")
_BASE_KEYS = "general.base_model."
_PUBLISHED = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 20  # weights compared at once


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, and the base that it was trained beside; everything was checked to belong together."""

    folder: Path
    base: Base
    config: Config
    contents: Contents


def is_asked(folder: Path, output: Path, options: Options) -> bool:
    """Whether an adapter shall be written by itself: ``folder`` is one, and a GGUF file is asked for."""
    is_adapter = (folder / configs.FILE).is_file() and not (folder / "config.json").is_file()
    return is_adapter and (options.to == "gguf" or (options.to is None and is_named_gguf(output.name)))


def chosen(options: Options, output: Path) -> Options:
    """The options with a format. OptionError for one that is not heeded here, and for a name that isn't GGUF's."""
    default = Options()
    for each in fields(Options):
        if each.name not in _OPTIONS and getattr(options, each.name) != getattr(default, each.name):
            raise OptionError(f"{flag(each.name)}: not for an adapter", remedy="leave it out")
    quant = options.quant or "f32"
    if quant not in QUANTS:
        raise OptionError(f"--quant {quant}: not for an adapter", remedy=f"known: {', '.join(QUANTS)}")
    if not is_named_gguf(output.name):
        raise OptionError(f"{output}: an adapter becomes a {SUFFIX} file", remedy=f"end the name in {SUFFIX}")
    return replace(options, quant=quant)


def base_of(folder: Path, options: Options) -> Path:
    """Where the base lies: as asked, or what the adapter names if that is on this machine. OptionError if it isn't."""
    if options.base is not None:
        return Path(options.base)
    named = Config.read(folder).content.get("base_model_name_or_path")
    if isinstance(named, str) and named and "\0" not in named and Path(named).exists():
        return Path(named)
    told = f"it names {named!r:.200}, which is not here" if named else "it names none"
    raise OptionError(
        f"{folder}: which base is it for? {told}",
        remedy="give the checkpoint, or its config.json alone: --base FOLDER|FILE",
    )


def opened(folder: Path, base: Checkpoint) -> Adapter:
    """The adapter in ``folder``, checked against ``base``; no weight is read but those of which it has a copy.

    CheckpointError for what isn't understood, is missing, left over or doesn't fit, and for what a GGUF adapter can't
    express.
    """
    known, config = Base(base), Config.read(folder)
    held = contents.read(folder, known.names)
    check(known, config, held)
    adapter = Adapter(folder, known, config, held)
    if problem := _inexpressible(adapter):
        raise CheckpointError(
            f"{folder}: {problem}, which a GGUF adapter can't express",
            remedy=f"merge it into its base: edge-llama convert BASE OUTPUT --lora {folder}",
        )
    return adapter


def _inexpressible(adapter: Adapter) -> str:
    """What is no product of two matrices beside a weight of the text tower; "" if all is."""
    held, base = adapter.contents, adapter.base
    kinds = {"magnitude": "by DoRA", "B.bias": "with a bias of B", "rows": "for single tokens"}
    places = for_config(base.checkpoint).places_in(base.checkpoint)
    for module, parts in held.parts.items():
        if kind := next((told for part, told in kinds.items() if part in parts), ""):
            return f"{module!r} was trained {kind}"
        name = f"{module}.weight"
        if base.is_end(name) and base.is_tied:
            return f"{module!r} was trained, a matrix that is embedding and head of this base"
        if name not in places or len(places[name].spec.shape) != 2:
            return f"{module!r} was trained, no matrix of the text tower by itself"
    for name in held.wholes:
        if not _is_copy(adapter, name):
            return f"{name!r} was trained as a whole"
        if not _is_the_bases(adapter, name):
            return f"{name!r} is another than the base's"
    return ""


def _is_copy(adapter: Adapter, name: str) -> bool:
    """Whether peft saved a tensor of the base beside its product: of embedding and head it does so by itself."""
    module = name.removesuffix(".weight")
    is_saved = adapter.config.saves(adapter.contents.root.of_trained(module))
    return "A" in adapter.contents.parts.get(module, {}) and not is_saved


def _is_the_bases(adapter: Adapter, name: str) -> bool:
    """Whether a copy has the base's numbers, as far as these are at hand, and its shape."""
    copy, own = adapter.contents.wholes[name], adapter.base.tensor(name)
    if copy.shape != own.shape or not _has_numbers(adapter, own):
        return copy.shape == own.shape
    step = max(_CHUNK // own.columns // own.step, 1) * own.step
    starts = range(0, own.rows, step)
    return all(
        np.array_equal(_floats(copy, start, stop), _floats(own, start, stop))
        for start, stop in ((start, min(start + step, own.rows)) for start in starts)
    )


def _has_numbers(adapter: Adapter, tensor: Tensor) -> bool:
    """Whether the base's own numbers are there: not of a config.json alone, nor where they were rounded since."""
    return bool(adapter.base.checkpoint.vocabulary.tokens) and not tensor.format.is_quantized


def _floats(tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
    return recode(tensor.read(start, stop), tensor.format, F32, check=False).view(np.float32)


def as_checkpoint(adapter: Adapter) -> Checkpoint:
    """The base's checkpoint as what is converted: its path, files, notes and warnings are the adapter's."""
    folder, base = adapter.folder, adapter.base
    read = [folder / configs.FILE, folder / contents.FILE, *provenance_files(folder)]
    return replace(
        base.checkpoint,
        path=folder,
        name=folder.resolve().name,
        files=(*base.checkpoint.files, *read),
        notes=unused_files(folder, read),
        warnings=(*missing_biases(base, adapter.config, adapter.contents), *_unproved(adapter)),
    )


def _unproved(adapter: Adapter) -> tuple[str, ...]:
    """A warning where it was not seen that copies are the base's."""
    copies = [name for name in adapter.contents.wholes if not _has_numbers(adapter, adapter.base.tensor(name))]
    if not copies:
        return ()
    told = f"the adapter has a copy of {' and '.join(map(repr, copies))}, which is left out as the base's own"
    return (f"{told}: give the full-precision base to have that compared",)


def lay_out(adapter: Adapter, name: str, options: Options) -> Layout:
    """The file ``name``, as ``options`` that :func:`chosen` gave have it. CheckpointError for shapes that don't fit."""
    architecture = for_config(adapter.base.checkpoint)
    provenance = read_provenance(adapter.folder)
    kept = {key: value for key, value in provenance.fields.items() if not key.startswith(_BASE_KEYS)}
    metadata = {
        "general.architecture": string(architecture.gguf_name),
        "general.type": string(KIND),
        TYPE_KEY: string(TYPE),
        "general.name": string(adapter.folder.resolve().name),
        **kept,
        **_base_named(adapter.config),
        ALPHA: f32(adapter.config.alpha),
        "general.quantization_version": u32(gguf.QUANTIZATION_VERSION),
    }
    wanted = FORMATS[options.quant or "f32"]
    entries = tuple(Entry(tensor, *_format(tensor, wanted)) for tensor in _tensors(adapter))
    return Layout((gguf.part(name, metadata, entries, adapter.folder),))


def _base_named(config: Config) -> dict[str, Value]:
    """What it was trained beside: a published name, or a folder's own, without those that it lies in."""
    given = config.content.get("base_model_name_or_path")
    named = given.replace("\\", "/").rstrip("/") if isinstance(given, str) else ""
    organization, _, name = named.rpartition("/")
    if not name:
        return {}
    found = {f"{_BASE_KEYS}count": u32(1), f"{_BASE_KEYS}0.name": string(name)}
    if _PUBLISHED.fullmatch(named):
        found[f"{_BASE_KEYS}0.organization"] = string(organization)
        found[f"{_BASE_KEYS}0.repo_url"] = string(f"https://huggingface.co/{named}")
    return found


def _format(tensor: Tensor, wanted: Format) -> tuple[Format, Format | None]:
    """As llama.cpp's converter decides: f16 where rows are no whole blocks."""
    return (F16, wanted) if tensor.columns % wanted.block_size else (wanted, None)


def _tensors(adapter: Adapter) -> Iterator[Tensor]:
    """Two matrices for each module, in the order of the adapter's file."""
    checkpoint = adapter.base.checkpoint
    architecture = for_config(checkpoint)
    places, hp = architecture.places_in(checkpoint), architecture.hyperparameters(checkpoint)
    for module, parts in adapter.contents.parts.items():
        yield from _pair(adapter, module, parts, places[f"{module}.weight"], hp)


def _pair(
    adapter: Adapter, module: str, parts: Mapping[str, Tensor], place: Place, hp: Hyperparameters
) -> Iterator[Tensor]:
    config, path = adapter.config, adapter.contents.path
    trained = adapter.contents.root.of_trained(module)
    pair = Pair(path, finite(parts["A"], path), finite(parts["B"], path))
    pair.check(adapter.base.tensor(f"{module}.weight"), config.rank(trained), config.another_base)
    b = pair.b if pair.is_embedding else place.spec.view.to_gguf(pair.b, hp)
    yield (transposed(pair.a) if pair.is_embedding else pair.a).renamed(f"{place.gguf}.lora_a")
    yield _times(b, _missing_factor(config, trained)).renamed(f"{place.gguf}.lora_b")


def _missing_factor(config: Config, module: str) -> float:
    """What llama.cpp does not multiply with by itself. An alpha of 0 it takes for none."""
    own = config.alpha / config.rank(module) if config.alpha else 1.0
    return config.scale(module) / own


def _times(tensor: Tensor, factor: float) -> Tensor:
    """``tensor`` with its numbers multiplied, float32; itself where that changes nothing."""
    if factor == 1:
        return tensor

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        numbers = recode(tensor.read(start, stop), tensor.format, F32).view(np.float32)
        return (numbers.astype(np.float64) * factor).astype(np.float32).view(np.uint8)

    return replace(tensor, format=F32, read=read)
