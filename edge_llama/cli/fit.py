"""``edge-llama fit``: will it fit, and how fast."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edge_llama.backends import local_models
from edge_llama.backends.base import Setting
from edge_llama.backends.device_names import parse
from edge_llama.backends.towers import checkpoint_at
from edge_llama.cli import fit_picture, options
from edge_llama.errors import OptionError
from edge_llama.files.artifact import main_format
from edge_llama.files.onnx_text import CONFIG as GENAI
from edge_llama.files.shape import TextShape
from edge_llama.fit import fit as fit_model
from edge_llama.fit import fit_shape, need_of
from edge_llama.planning.fit import Asked, Fit, VisionShape, best
from edge_llama.planning.fleet import FleetAsked, FleetPlan, plan_fleet
from edge_llama.planning.machine import HERE, KINDS, Machine, machine, on_device, this
from edge_llama.sampling.option_text import parse_on_or_off

RECIPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
"""What a checkpoint is tried in, if nothing is asked: the usual ones, the most bits first."""
BY_IMPORTANCE = (
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q4_k_m",
    "iq4_xs",
    "iq3_m",
    "iq3_xxs",
    "iq2_m",
    "iq2_xs",
    "iq2_xxs",
    "iq1_s",
)
"""The same where there is an importance matrix."""


def fit(
    model: Annotated[
        str | None,
        typer.Argument(help="A model, a checkpoint's folder, or a config.json alone, before anything is downloaded."),
    ] = None,
    quant: Annotated[
        list[str] | None, typer.Option(help="Of a checkpoint: this recipe. May be repeated. Default: the usual ones.")
    ] = None,
    n_ctx: Annotated[int | None, typer.Option(help="Tokens of context. Default: what is useful and fits.")] = None,
    kv: Annotated[
        str | None, typer.Option(metavar="f16|f32|q8_0|q4_0", help="Format of the KV cache. Default: f16.")
    ] = None,
    flash_attn: Annotated[
        str | None, typer.Option(metavar="on|off", help="Flash attention. Default: as opened.")
    ] = None,
    max_running: Annotated[int, typer.Option(help="Requests that are served at once.")] = 1,
    on: Annotated[str, typer.Option("--on", metavar="MACHINE", help=f"Where: {HERE}, or {', '.join(KINDS)}.")] = HERE,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="What a model gets there, such as 12G.")] = None,
    bandwidth: Annotated[float | None, typer.Option(metavar="GB/S", help="How fast its memory is read.")] = None,
    device: Annotated[
        str,
        typer.Option(metavar="cpu|gpu|KIND", help="Where it runs; one that is not here is planned for by its name."),
    ] = "cpu",
    isolate: Annotated[bool, typer.Option("--isolate", help="In a process of its own, as the server has it.")] = False,
    fleet: Annotated[bool, typer.Option("--fleet", help="GPUs for many users, and the command for vLLM.")] = False,
    gpu: Annotated[str, typer.Option(metavar="SIZE", help="With --fleet: a GPU's memory.")] = "80G",
    users: Annotated[int, typer.Option(help="With --fleet: who have full contexts at once.")] = 32,
    group: Annotated[int, typer.Option(help="With --fleet and w4a16: weights that share a scale.")] = 128,
    scale_dtype: Annotated[
        str, typer.Option(metavar="bf16|f16", help="With --fleet and w4a16: of the scales.")
    ] = "bf16",
    lora: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="With --fleet: an adapter. May be repeated.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Tell whether a model fits, what it takes of which memory, and how fast it will be.

    Of a checkpoint it tells that for each recipe, and which is the best that fits. Only headers are read, or a
    config.json. How fast it is here is measured with small stand-ins, once; elsewhere it is what the machine's memory
    allows.

    Example: edge-llama fit Llama-3.1-8B-Instruct/config.json --on laptop-16gb --n-ctx 8192
    """
    where = _machine(on, memory, bandwidth, device)
    if fleet:
        asked_fleet = FleetAsked(
            gpu_bytes=options.size(gpu.upper().removesuffix("B"), "--gpu"),
            users=users,
            n_ctx=n_ctx or FleetAsked().n_ctx,
            quant=(quant or ["w4a16"])[0],
            group=group,
            scale_dtype=scale_dtype,
            adapters=_adapters(lora or ()),
        )
        planned = _fleet(model, asked_fleet)
        print(json.dumps(planned.to_json()) if as_json else fit_picture.fleet(planned))  # noqa: T201
        return
    flash = None if flash_attn is None else parse_on_or_off(flash_attn, "--flash-attn")
    setting = Setting(
        flash_attention=where.device != "cpu" or kv in ("q8_0", "q4_0") if flash is None else flash,
        kv_format=kv or "f16",
    )
    asked = Asked(n_ctx, max_running, setting, isolate)
    found = _fits(model, quant, where, asked, kv, flash)
    if as_json:
        print(json.dumps({"plans": {name: each.to_json() for name, each in found.items()}, "best": best(found)}))  # noqa: T201
    else:
        fit_picture.show(found)


def _machine(name: str, memory: str | None, bandwidth: float | None, device: str) -> Machine:
    """Where it shall run. OptionError for what nobody knows."""
    if bandwidth is not None and not 0 < bandwidth < 1e6:
        raise OptionError(f"--bandwidth {bandwidth}: expected gigabytes a second, such as 90")
    nbytes = None if memory is None else options.size(memory.upper().removesuffix("B"), "--memory")
    found = machine(name, memory=nbytes, bandwidth=None if bandwidth is None else bandwidth * 1e9)
    if device == "cpu" or (not found.is_here and device == found.device):
        return found
    return on_device(found, parse(device).kind, nbytes)  # an error for what is no device at all


def _fits(
    model: str | None, quants: Sequence[str] | None, where: Machine, asked: Asked, kv: str | None, flash: bool | None
) -> dict[str, Fit]:
    """By recipe; of a model that is there it is one, whose engine refuses a cache (``kv``) that it doesn't have."""
    path = _source(model)
    if path is None:
        if quants:
            raise OptionError(
                f"--quant {quants[0]}: {model or 'the model'} is converted already",
                remedy="leave it out, or give the checkpoint",
            )
        found = fit_model(model, where, asked, kv_format=kv, flash_attention=flash)
        return {main_format(found.shape.tensors): found}
    from edge_llama.convert import shapes  # noqa: PLC0415 - only a checkpoint needs the converter

    planned = shapes(path, quants or RECIPES)
    return {name: fit_shape(shape, planned.vision, where, asked) for name, shape in planned.texts.items()}


def fitting_quant(source: Path, calibration: Sequence[Path] = ()) -> str:
    """The recipe of the most bits by which the checkpoint fits here. OptionError if none does, with the least need.

    With an importance matrix among ``calibration`` it may be one that needs it.
    """
    from converters.evidence.given import is_importance  # noqa: PLC0415
    from edge_llama.convert import shapes  # noqa: PLC0415

    planned = shapes(source, BY_IMPORTANCE if any(map(is_importance, calibration)) else RECIPES)
    found = {name: need_of(shape, planned.vision, this(), Asked()) for name, shape in planned.texts.items()}
    if (chosen := best(found)) is None:
        least = min(each.needed for each in found.values())
        raise OptionError(
            f"--quant fit: {source} needs {least:,} bytes in its smallest recipe, {this().memory:,} are free here",
            remedy="take a smaller checkpoint, or name the recipe if it is for another machine",
        )
    return chosen


def told(shape: TextShape, vision: VisionShape | None) -> str:
    """A sentence on whether what was planned fits here; "" if it does."""
    found = need_of(shape, vision, this(), Asked())
    if found.fits:
        return ""
    return (
        f"it needs {found.needed:,} bytes to run with {found.n_ctx:,} tokens of context, {found.machine.memory:,} are "
        "free here (edge-llama fit tells what would fit)"
    )


def _source(model: str | None) -> Path | None:
    """The checkpoint or config.json that is meant; None: a model that the runtime opens."""
    if model is not None and model.endswith(".json"):
        return Path(model)
    path = local_models.found(model)
    is_config = path.is_dir() and (path / "config.json").is_file() and not (path / GENAI).exists()
    return path if checkpoint_at(path) or is_config else None


def _fleet(model: str | None, asked: FleetAsked) -> FleetPlan:
    """For a checkpoint: what vLLM is given is converted from one."""
    path = _source(model)
    if path is None:
        raise OptionError(
            f"--fleet: {model or 'the model'} is converted for this engine",
            remedy="give the checkpoint, or its config.json",
        )
    from edge_llama.convert import shapes  # noqa: PLC0415

    planned = shapes(path, ("bf16",), "bf16")
    shape, vision = planned.texts["bf16"], planned.vision
    return plan_fleet(shape, vision.weight_bytes if vision else 0, asked, str(path) if path.is_dir() else "FOLDER")


def _adapters(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if odd := next(
        (text for text, (name, _, folder) in zip(given, pairs, strict=True) if not name or not folder), None
    ):
        raise OptionError(f"--lora {odd:.100}: expected NAME=FOLDER")
    return {name: folder for name, _, folder in pairs}
