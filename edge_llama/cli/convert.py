"""``edge-llama convert``: a checkpoint into a small file."""

import json
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_llama.backends import local_models
from edge_llama.certifying import Certifier
from edge_llama.cli import certificate_table, options, output_file
from edge_llama.cli.fit import fitting_quant, told
from edge_llama.cli.resuming import resumable
from edge_llama.cli.terminal.console import bars, note
from edge_llama.errors import OptionError
from edge_llama.fidelity.certificate import Certificate
from edge_llama.files.gguf import SUFFIX

_RECIPES = (  # quant.recipe's, which only the verb itself may import; a test holds them equal
    "f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs q3_k_l q3_k_m q3_k_s "
    "iq3_m iq3_s iq3_xs iq3_xxs q2_k q2_k_s iq2_m iq2_s iq2_xs iq2_xxs iq1_m iq1_s"
)

if TYPE_CHECKING:
    from converters import Conversion, Plan
    from converters.layout import Part


def convert(
    source: Annotated[Path, typer.Argument(help="A folder from Hugging Face or Meta, a .gguf file, or smollm2.")],
    output: Annotated[
        Path, typer.Argument(help="The file to write (.gguf); of two towers, or with --to safetensors, the folder.")
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help=f"fit (the most bits that this machine holds), or {_RECIPES} (iq3_xs, iq3_xxs and all from q2_k_s on "
            "need an importance matrix: --calibration). Default: q4_k_m. "
            "With --to onnx: int4, int8, f16, f32, and a16w8, a16w4 for NPUs; with --to safetensors: bf16, f16, f32, "
            "w4a16.",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=FORMAT", help="All tensors of a role in another format: attn_v=q8_0. Repeatable."),
    ] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Formats of tensors by patterns in their names, PATTERN=FORMAT, as llama-quantize's."
        ),
    ] = None,
    write_tensor_types: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --dry-run: the formats that were chosen, as such a file."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="gguf|safetensors|onnx", help="Default: by the output's name.")
    ] = None,
    tower: Annotated[
        str | None,
        typer.Option(
            metavar="text|vision|all", help="Which towers of a Llama 4 to write. A .gguf file holds one. Default: all."
        ),
    ] = None,
    vision_quant: Annotated[
        str | None,
        typer.Option(
            metavar="f16|f32|int8|int4|a16w8|bf16|q8_0",
            help="Format of the vision tower's weights. ONNX: f16, f32, int8, int4, and a16w8 for NPUs, one tile at a "
            "time; GGUF: f16, f32, bf16, q8_0. Default: f16.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            *("--calibration", "--ranges", "--imatrix"),
            metavar="FILE",
            help="What edge-llama calibrate measured: ranges for a16w8 and a16w4, for GGUF an importance matrix "
            "(llama-imatrix's too). Repeatable.",
        ),
    ] = None,
    vision_to: Annotated[
        str | None,
        typer.Option(metavar="onnx|gguf", help="The vision tower for ONNX Runtime, or for llama.cpp. Default: onnx."),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(metavar="32|64|128", help="ONNX: so many weights of int4 and int8 share a scale. Default: 32."),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="32|64|128",
            help="w4a16: so many weights share a scale. Default: the largest that divides all rows.",
        ),
    ] = None,
    scale_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="bf16|f16",
            help="w4a16: the dtype of scales, and of all that isn't quantized. Default: the source's.",
        ),
    ] = None,
    zero_points: Annotated[
        bool, typer.Option("--zero-points", help="ONNX: int4 and int8 with zero points, nearer to the weights.")
    ] = False,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="ONNX: standard operators alone, for runtimes without ONNX Runtime's own."),
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="ONNX: the text model also embeds texts (edge-llama embed).")
    ] = False,
    n_ctx: Annotated[
        int | None, typer.Option(help="a16w8 and a16w4: the context, which is part of the graphs. Default: 2048.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="a16w8 and a16w4: tokens of a prompt that are read at once. Default: 64.")
    ] = None,
    kv_bits: Annotated[
        int | None,
        typer.Option(metavar="8|16", help="a16w8 and a16w4: bits of the KV cache; genai takes 8. Default: 8."),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Several files of at most this size, such as 2G; for NPUs graphs. Default there: 1.9G.",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY|FILE|none",
            help="llama2, llama3, ..., llama4, a Jinja file, or none. Default: the source's own, or by its name.",
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="PEFT_DIR", help="Merge the LoRA adapter in this folder on the way.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Of an adapter's folder: the model that it was trained beside, or its config.json alone. Default: "
            "what the adapter names, if it is on this machine.",
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Go on where weights are NaN, infinite or too large.")
    ] = False,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Measure what is written beside the source, and write the certificate into it."),
    ] = False,
    strict: Annotated[
        float | None,
        typer.Option(metavar="KL", help="For --certify: fail above this mean KL divergence, in nats."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say what bounded the speed.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a full-precision checkpoint in one streaming pass; the output appears complete or not at all.

    Example: edge-llama convert ~/models/Llama-3.2-1B-Instruct llama-3.2-1b-q4_k_m.gguf
    For vLLM: edge-llama convert ~/models/Llama-3.3-70B-Instruct llama-w4a16 --to safetensors --quant w4a16
    An adapter: edge-llama convert ~/adapters/legal legal.gguf --base ~/models/Llama-3.2-1B-Instruct
    """
    from converters import convert as run_conversion  # noqa: PLC0415 - the runtime's verbs must not need this half
    from converters import partial_folder  # noqa: PLC0415
    from converters import plan as make_plan  # noqa: PLC0415
    from edge_llama.backends.llama_cpp.vocabulary_probe import encode  # noqa: PLC0415

    source = source if source.exists() else local_models.named(source) or source
    if write_tensor_types and not dry_run:
        raise OptionError("--write-tensor-types: is for --dry-run alone", remedy="add --dry-run")
    if strict is not None and not certify:
        raise OptionError(f"--strict {strict:g}: is for --certify", remedy="add --certify, or leave it out")
    if quant == "fit":
        quant = fitting_quant(source, calibration or ())
        note(f"quant: {quant}, the recipe of the most bits that fits the memory that is free here", quiet=quiet)
    asked = options.given(
        quant=quant,
        to=to,
        tower=tower,
        vision_quant=vision_quant,
        calibration=tuple(calibration or ()),
        vision_to=vision_to,
        tensor_types=_tensor_types(tensor_type or []),
        tensor_type_file=tensor_type_file,
        block=block,
        group=group,
        scale_dtype=scale_dtype,
        zero_points=zero_points,
        portable=portable,
        embeddings=embeddings,
        n_ctx=n_ctx,
        window=window,
        kv_bits=kv_bits,
        max_shard_bytes=None if max_shard_size is None else options.size(max_shard_size, "--max-shard-size"),
        chat_template=chat_template,
        lora=lora,
        base=base,
        allow_nonfinite=allow_nonfinite,
    )
    if dry_run:
        plan = make_plan(source, output, encode_gguf=encode, **asked)
        if certify:
            Certifier(strict, threads).check(plan)
        if write_tensor_types:
            _write_tensor_types(plan, write_tensor_types, force=force)
        _print_plan(plan, as_json)
        _tell(plan, quiet or as_json)
        return
    started = time.perf_counter()
    with resumable(partial_folder(output)), bars(quiet=quiet) as tell:
        certifier = Certifier(strict, threads, partial(tell, unit="done")) if certify else None
        done = run_conversion(
            *(source, output),
            force=force,
            threads=threads,
            on_progress=partial(tell, output.name, unit="bytes"),
            encode_gguf=encode,
            examiner=certifier,
            **asked,
        )
    certificate = certifier.certificate if certifier else None
    _report(done, time.perf_counter() - started, certificate, as_json, quiet)
    if profile:
        note(f"profile: {done.times}")


def _unfit(plan: "Plan") -> str:
    """Why a GGUF text tower of this plan would not run here; "" if it would."""
    from converters.shapes import Sketch  # noqa: PLC0415

    is_text = any(part.name.endswith(SUFFIX) for part in plan.layout.parts) and not plan.is_adapter
    if not is_text or plan.options.quant is None:
        return ""
    return told(Sketch(plan.checkpoint).text(plan.options.quant), None)


def _write_tensor_types(plan: "Plan", path: Path, *, force: bool) -> None:
    """The formats of the plan's GGUF text tower by name, for ``--tensor-type-file`` and llama-quantize's."""
    from converters.output import check_inputs  # noqa: PLC0415
    from converters.targets.gguf import tensor_type_lines  # noqa: PLC0415

    if plan.is_adapter or plan.options.quant is None or plan.options.to not in (None, "gguf"):
        raise OptionError("--write-tensor-types: is for a text tower in GGUF alone", remedy="leave it out")
    lines = tensor_type_lines(plan.checkpoint, plan.options)
    check_inputs(path, plan.inputs, plan.files)
    output_file.check(path, force=force)
    output_file.write(path, lines.encode())


def _tensor_types(options: list[str]) -> dict[str, str]:
    """``ROLE=FORMAT`` options as a mapping; what the names mean is the recipe's to say."""
    types: dict[str, str] = {}
    for option in options:
        role, _, name = option.partition("=")
        if not role or not name:
            raise OptionError(f"--tensor-type {option}: expected ROLE=FORMAT", remedy="for example attn_v=q8_0")
        if role in types:
            raise OptionError(f"--tensor-type {option}: {role} is {types[role]} already", remedy="give each role once")
        types[role] = name
    return types


def _print_plan(plan: "Plan", as_json: bool) -> None:
    if as_json:
        tensors = [tensor for part in plan.layout.parts for tensor in _tensors(part)]
        print(json.dumps(_described(plan) | {"tensors": tensors}))  # noqa: T201
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in filter(lambda part: part.entries, plan.layout.parts):
        file = part.name if plan.layout.is_folder else None
        table = Table("tensor", "shape", "from", "to", "bytes", box=None, title=file, title_justify="left")
        for tensor in _tensors(part):
            shape = " x ".join(f"{size:,}" for size in tensor["shape"])
            table.add_row(tensor["name"], shape, tensor["from"], tensor["to"], f"{tensor['bytes']:,}")
        console.print(table)
    print(_summary(plan))  # noqa: T201


def _tensors(part: "Part") -> list[dict[str, Any]]:
    return [
        {
            "file": part.name,
            "name": entry.tensor.name,
            "shape": list(entry.tensor.shape),
            "from": entry.tensor.format.name,
            "to": entry.format.name,
            "bytes": entry.nbytes,
            **({"exact": True} if entry.is_exact else {}),
        }
        for entry in part.entries
    ]


def _described(plan: "Plan") -> dict[str, Any]:
    return {
        "source": str(plan.checkpoint.path),
        "quant": plan.options.quant,
        "vision_quant": plan.options.vision_quant,
        "tensor_types": dict(plan.options.tensor_types),
        "source_bytes": plan.layout.source_bytes,
        "output_bytes": plan.layout.output_bytes,
        "notes": dict(plan.checkpoint.notes),
        "warnings": list(plan.warnings),
    }


def _summary(plan: "Plan") -> str:
    layout = plan.layout
    tensors = [entry for entry in layout.entries if entry.is_first]
    counts = Counter(entry.kind for entry in tensors)
    formats = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    sizes = f"{layout.source_bytes:,} bytes to {layout.output_bytes:,}"
    asked = plan.options
    recipe = ", ".join(
        [
            *([asked.quant] if asked.quant else []),
            *(f"{role}={name}" for role, name in asked.tensor_types.items()),
            *([f"formats of {asked.tensor_type_file}"] if asked.tensor_type_file else []),
            *([f"vision {asked.vision_quant}"] if asked.vision_quant else []),
        ]
    )
    text = f"{recipe}: {sizes}; {len(tensors)} tensors: {formats}"
    if exact := sum(entry.is_exact for entry in tensors if entry.format.ggml_id < 0):
        text += f"\n{exact} tensors keep the source's quantized numbers, bit for bit"
    fallen = Counter(
        (e.wanted.name, e.wanted.block_size, e.format.name) for e in layout.entries if e.wanted not in (None, e.format)
    )
    for (wanted, block, used), count in fallen.items():
        text += f"\n{count} tensors take {used} instead of {wanted}: their rows are no multiple of {block}"
    return text


def _report(done: "Conversion", seconds: float, certificate: Certificate | None, as_json: bool, quiet: bool) -> None:
    if as_json:
        took = {"output": str(done.output), "seconds": round(seconds, 3), "sync_seconds": round(done.sync_seconds, 3)}
        took |= {"profile": {part: round(spent, 3) for part, spent in done.times.seconds.items()}}
        took |= {"certificate": certificate.to_json()} if certificate else {}
        print(json.dumps(_described(done.plan) | took | {"resumed_bytes": done.resumed_bytes}))  # noqa: T201
        return
    note(_summary(done.plan), quiet=quiet)
    _tell(done.plan, quiet)
    rate = done.plan.layout.source_bytes / seconds / 1e6
    resumed = f"; {done.resumed_bytes:,} bytes were there from an earlier run" if done.resumed_bytes else ""
    for line in certificate_table.lines(certificate) if certificate else ():
        note(line, quiet=quiet)
    note(f"{done.output}: written in {seconds:.1f} s ({rate:,.0f} MB/s{resumed})", quiet=quiet)


def _tell(plan: "Plan", quiet: bool) -> None:
    """What was chosen for the user, and what they should know."""
    if not quiet and (problem := _unfit(plan)):
        note(f"warning: {problem}")
    for warning in plan.warnings:
        note(f"warning: {warning}", quiet=quiet)
    for topic, text in plan.checkpoint.notes.items():
        note(f"{topic}: {text}", quiet=quiet)
