"""Options that have one name everywhere, and what they open."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli.console import note
from edge_llama.devices import cpu_threads
from edge_llama.errors import OptionError
from edge_llama.model import Model

NCtx = Annotated[
    int | None, typer.Option("--n-ctx", help="Tokens of context. Default: what is useful and fits the memory.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads. Default: as many as there are free cores, from token to token.")
]
Batch = Annotated[
    int | None,
    typer.Option(help="Tokens of a prompt that are computed together. Default: as measured once, mostly 512."),
]
FlashAttn = Annotated[
    str | None,
    typer.Option(
        metavar="on|off",
        help="Flash attention: faster prompts, slower answers on most CPUs. Default: as measured once.",
    ),
]
Kv = Annotated[
    str | None,
    typer.Option(
        metavar="f16|f32|q8_0",
        help="Format of the KV cache. Default: f16, or f32 where that was measured faster; q8_0 takes half.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|gpu", help="auto takes a GPU if llama.cpp is built for one and the model fits.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say with which settings the model runs, and why.")]
ChatTemplate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A Jinja chat template in place of the model's own.")
]
System = Annotated[str | None, typer.Option(help="The system message.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token; higher is more varied.")]
TopK = Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest tokens that make up this probability.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: recent tokens become less likely.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="The same seed gives the same answer with the same model file, on the same machine, "
        "after the same text was read before."
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="End the answer after so many tokens.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")]


def open_model(
    model: str | None,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    flash_attn: str | None = None,
    kv: str | None = None,
    device: str = "auto",
    chat_template: Path | None = None,
    verbose: bool = False,
) -> Model:
    """Open the model with the common options; settings that are not given are measured once and remembered."""
    opened = Model(
        model,
        n_ctx=n_ctx,
        threads=threads,
        n_batch=batch,
        flash_attention=flash_attention(flash_attn),
        kv_format=kv,
        device=device,
        tune=True,
        chat_template=_read_template(chat_template) if chat_template else None,
    )
    if verbose:
        note(f"{opened.choice}; {_threads(threads)}; {opened.placement}")
    return opened


def flash_attention(flash_attn: str | None) -> bool | None:
    """The option's meaning; None leaves it open. OptionError for another word than on or off."""
    if flash_attn not in (None, "on", "off"):
        raise OptionError(f"--flash-attn {flash_attn}: unknown", remedy="on or off")
    return None if flash_attn is None else flash_attn == "on"


def _threads(threads: int | None) -> str:
    return f"threads {threads} (as asked)" if threads else f"threads up to {cpu_threads()} (as many as are free)"


def _read_template(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--chat-template {path}: cannot be read: {error}") from error


def given(**params: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in params.items() if value is not None}
