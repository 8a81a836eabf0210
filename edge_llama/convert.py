"""Convert checkpoints from a program: the one module of the public API that needs the converter, and loads it late.

from edge_llama.convert import convert

convert("Llama-3.2-1B-Instruct", "llama-3.2-1b-q4_k_m.gguf", quant="q4_k_m")
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from edge_llama.errors import OptionError, check_known
from edge_llama.files.shape import TextShape
from edge_llama.planning.fit import VisionShape

if TYPE_CHECKING:
    from converters import Plan

__all__ = ["Conversion", "ConversionPlan", "ConvertOptions", "PlannedTensor", "Shapes", "convert", "plan", "shapes"]


class ConvertOptions(TypedDict, total=False):
    """What may be asked for, as ``edge-llama convert`` has it; None and what is left out mean the same.

    Examples:
        >>> from edge_llama.convert import ConvertOptions, plan
        >>> options: ConvertOptions = {"quant": "q8_0", "tensor_types": {"attn_v": "f16"}}
        >>> {tensor.format for tensor in plan("smollm2", "smollm2.gguf", **options).tensors} == {"q8_0", "f16", "f32"}
        True
    """

    quant: str | None
    """The recipe: ``q4_k_m`` (None), ...; for ONNX ``int4`` (None), ...; for safetensors ``bf16`` (None), ``w4a16``."""
    to: str | None
    """``gguf``, ``onnx`` or ``safetensors``; None: by the output's name."""
    tower: str | None
    """Which of two towers are written: ``text``, ``vision`` or ``all`` (None)."""
    vision_to: str | None
    """``onnx`` (None) or ``gguf``."""
    vision_quant: str | None
    """The vision tower's format: ``f16`` (None), ``int8``, ..."""
    calibration: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    """What ``edge-llama calibrate`` measured, in a file or several: ``a16w8`` and ``a16w4`` need it, and recipes below
    three bits; others are better by it."""
    tensor_types: Mapping[str, str]
    """Another format for all tensors of a role: ``{"attn_v": "q8_0"}``."""
    tensor_type_file: str | os.PathLike[str] | None
    """Another format for tensors by patterns in their names, ``pattern=format``, as llama-quantize takes them."""
    block: int | None
    """ONNX: so many weights share a scale: 32 (None), 64 or 128."""
    group: int | None
    """``w4a16``: so many weights share a scale: 32, 64 or 128; None: the largest that divides all rows."""
    scale_dtype: str | None
    """``w4a16``: the dtype of scales and of all that isn't quantized: ``bf16`` or ``f16``; None: by the source."""
    zero_points: bool
    """ONNX: int4 and int8 with zero points."""
    portable: bool
    """ONNX: standard operators alone."""
    embeddings: bool
    """ONNX: the text tower gives hidden states, too, so that texts can be embedded."""
    n_ctx: int | None
    """ONNX for NPUs: the context, which is part of the graphs: 2,048 (None), or the model's own if that is less."""
    window: int | None
    """ONNX for NPUs: how many tokens of a prompt are read at once: 64 (None)."""
    kv_bits: int | None
    """ONNX for NPUs: the KV cache's, 8 (None) or 16, which onnxruntime-genai does not run."""
    max_shard_bytes: int | None
    """GGUF, safetensors: several files of at most so many bytes. ONNX for NPUs: graphs of at most so many."""
    chat_template: str | os.PathLike[str] | None
    """A family such as ``llama3.1``, a Jinja file, or ``none``."""
    lora: str | os.PathLike[str] | None
    """The folder of an adapter that is merged on the way; its tokenizer and chat template are used."""
    base: str | os.PathLike[str] | None
    """For a source that is an adapter: the model that it was trained beside, a checkpoint or its config.json alone;
    None: what the adapter names, if that lies on this machine."""
    allow_nonfinite: bool
    """Go on where weights are NaN, infinite or too large for their format."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output: its file, its shape, how the source stores it and how it will be stored, in bytes.

    Examples:
        >>> from edge_llama.convert import plan
        >>> plan("smollm2", "smollm2.gguf", quant="q8_0").tensors[0]
        PlannedTensor(file='smollm2.gguf', name='...', shape=(...), source_format='...', format='...', nbytes=...)
    """

    file: str
    name: str
    shape: tuple[int, ...]
    source_format: str
    format: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What a conversion will do. ``quant`` and ``vision_quant`` are as asked, or as chosen; None: no such tower.

    ``notes`` tell by topic what the source left open, ``warnings`` what a person should know before using the output.

    Examples:
        >>> from edge_llama.convert import plan
        >>> found = plan("smollm2", "smollm2.gguf", quant="q8_0")
        >>> found.output_bytes > sum(tensor.nbytes for tensor in found.tensors)  # a header, a vocabulary
        True
    """

    source_bytes: int
    output_bytes: int
    quant: str | None
    vision_quant: str | None
    notes: Mapping[str, str]
    warnings: tuple[str, ...]
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: ``output`` is the file to open, or the folder.

    ``resumed_bytes`` of it had been left by an earlier run that was stopped.

    Examples:
        >>> from edge_llama.convert import convert
        >>> done = convert("tests/data/llama4_digits", "digits", quant="q8_0")
        >>> done.output.name, done.plan.quant, done.plan.vision_quant, done.resumed_bytes
        ('digits', 'q8_0', 'f16', 0)
    """

    output: Path
    plan: ConversionPlan
    resumed_bytes: int


def plan(
    source: str | os.PathLike[str], output: str | os.PathLike[str], **options: Unpack[ConvertOptions]
) -> ConversionPlan:
    """What :func:`convert` would do; nothing is written and no weight is read. It raises the same before it starts.

    Examples:
        >>> from edge_llama.convert import plan
        >>> plan("smollm2", "smollm2-q4_k_m.gguf").quant
        'q4_k_m'
        >>> plan("smollm2", "smollm2.gguf", quant="q9")
        Traceback (most recent call last):
        edge_llama.errors.OptionError: ...
    """
    check_known(options, ConvertOptions.__optional_keys__, "plan")
    with _installed():
        from converters import plan as planned  # noqa: PLC0415
    from edge_llama.backends.llama_cpp.vocabulary_probe import encode  # noqa: PLC0415 - for those who convert

    return _described(planned(source, output, encode_gguf=encode, **options))


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    certify: bool = False,
    strict: float | None = None,
    **options: Unpack[ConvertOptions],
) -> Conversion:
    """Convert the checkpoint at ``source`` (a folder, a .gguf file, ``smollm2``) into ``output`` in one streaming pass.

    A source that is an adapter's folder becomes a GGUF adapter, to be opened beside its ``base``.
    ``options`` are those of ``edge-llama convert``, such as ``quant="q4_k_m"`` and ``to="onnx"``. An existing output is
    replaced only with ``force``. With ``certify`` it is measured beside the source before it takes its place, and a
    parity certificate written into it; ``strict`` is the largest mean KL divergence, in nats, with which it may.
    ``threads``: None for all cores. ``on_progress`` is told, on the caller's thread, the
    source bytes finished so far and how many there are.

    Raises CheckpointError, OptionError or OutputError, with ``certify`` FidelityError and EngineError, too; then no
    output exists and nothing is left behind. An OptionError also where a package of the extra ``convert`` is missing
    and needed. Stopped in another way (Ctrl-C, an exception of
    ``on_progress``), it leaves a folder ``.OUTPUT.partial``, and the same call goes on from there.

    Examples:
        >>> from edge_llama.convert import convert
        >>> done = convert("smollm2", "smollm2-q4_k_m.gguf", quant="q4_k_m")
        >>> with edge_llama.open(done.output) as small:
        ...     print(small.chat(temperature=0).send("What is the capital of Japan?").result().text)
        The capital of Japan is Tokyo.
    """
    own = ("force", "threads", "on_progress", "certify", "strict")
    check_known(options, ConvertOptions.__optional_keys__, "convert", besides=own)
    if strict is not None and not certify:
        raise OptionError(f"strict={strict}: is for certify", remedy="add certify=True, or leave it out")
    with _installed():
        from converters import convert as converted  # noqa: PLC0415
    from edge_llama.backends.llama_cpp.vocabulary_probe import encode  # noqa: PLC0415 - for those who convert
    from edge_llama.certifying import Certifier  # noqa: PLC0415 - opens models

    done = converted(
        *(source, output),
        force=force,
        threads=threads,
        on_progress=on_progress,
        encode_gguf=encode,
        examiner=Certifier(strict, threads) if certify else None,
        **options,
    )
    return Conversion(done.output, _described(done.plan), done.resumed_bytes)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a checkpoint would become: its text tower by recipe, and its vision tower if it has one.

    Examples:
        >>> from edge_llama.convert import shapes
        >>> shapes("tests/data/configs/llama-4-scout.json").vision is not None
        True
    """

    texts: Mapping[str, TextShape]
    vision: VisionShape | None


def shapes(source: str | os.PathLike[str], quants: Sequence[str] = ("q4_k_m",), vision_quant: str = "f16") -> Shapes:
    """What the checkpoint at ``source`` would become by each of ``quants``; nothing is written and no weight is read.

    ``source`` may be a config.json alone. CheckpointError if it is no checkpoint, OptionError for an unknown recipe.

    Examples:
        >>> from edge_llama.convert import shapes
        >>> texts = shapes("tests/data/configs/llama-3.2-1b.json", ["q4_k_m", "q8_0"]).texts
        >>> texts["q4_k_m"].weight_bytes < texts["q8_0"].weight_bytes
        True
    """
    with _installed():
        from converters.shapes import sketch  # noqa: PLC0415
    found = sketch(Path(source))
    texts = {quant: found.text(quant) for quant in quants}
    if (seen := found.vision(vision_quant)) is None:
        return Shapes(texts, None)
    nbytes, hp, spec = seen
    return Shapes(texts, VisionShape(nbytes, spec, hp.n_embd, hp.n_head, hp.n_ff, hp.grid**2 + 1))


@contextmanager
def _installed() -> Iterator[None]:
    """OptionError for what can't be imported: an application that only runs models need not have it."""
    try:
        yield
    except ImportError as error:
        raise OptionError(
            f"converting needs the package {error.name}", remedy='pip install "edge-llama[convert]"'
        ) from error


def _described(work: "Plan") -> ConversionPlan:
    tensors = tuple(
        PlannedTensor(
            part.name,
            entry.tensor.name,
            entry.tensor.shape,
            entry.tensor.format.name,
            entry.format.name,
            entry.nbytes,
        )
        for part in work.layout.parts
        for entry in part.entries
    )
    return ConversionPlan(
        source_bytes=work.layout.source_bytes,
        output_bytes=work.layout.output_bytes,
        quant=work.options.quant,
        vision_quant=work.options.vision_quant,
        notes=dict(work.checkpoint.notes),
        warnings=work.warnings,
        tensors=tensors,
    )
