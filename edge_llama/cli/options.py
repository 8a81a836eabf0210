"""Options that have one name everywhere, and what they open."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli.chat_session.conversations import completed
from edge_llama.cli.terminal.console import note
from edge_llama.errors import OptionError
from edge_llama.host.devices import cpu_threads
from edge_llama.model import Model
from edge_llama.prompts import context_overflow
from edge_llama.sampling.option_text import OptionText, read_text
from edge_llama.sampling.params import OPTION_TEXTS

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
    str,
    typer.Option(
        metavar="auto|cpu|gpu",
        help="auto takes a GPU if llama.cpp is built for one and the model fits. For an ONNX model: an execution "
        "provider (cuda, openvino, qnn, ...).",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say with which settings the model runs, and why.")]
ChatTemplate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A Jinja chat template in place of the model's own.")
]
Vision = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A vision tower for the text model: a bundle, its .onnx file or an mmproj .gguf."
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option(help="See each picture in so many tiles at most: fewer take less time and context, and show less."),
]
System = Annotated[str | None, typer.Option(help="The system message.")]


def _annotation(text: OptionText) -> Any:
    kind: Any = Path if text.is_file else list[text.kind] if text.is_repeated else text.kind  # type: ignore[name-defined] # a type to typer
    return Annotated[kind | None, typer.Option(metavar=text.metavar, help=text.help)]


SAMPLING: dict[str, Any] = {name: _annotation(text) for name, text in OPTION_TEXTS.items()}
"""An option for each that SamplingParams says how to write, for every verb that answers; see :func:`with_sampling`."""
WhenFull = Annotated[
    str,
    typer.Option(
        metavar="error|compact|drop-oldest",
        help="When a message leaves no room for an answer: refuse it, have the model summarise the oldest exchanges, "
        "or leave them out.",
    ),
]
Continue = Annotated[
    str | None,
    typer.Option(
        "--continue",
        metavar="[ID]",
        help="Go on with a conversation; without its id, the last one.",
        autocompletion=completed,
    ),
]
NoHistory = Annotated[bool, typer.Option("--no-history", help="Keep nothing of this chat on disk.")]
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
    vision: Path | None = None,
    max_tiles: int | None = None,
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
        chat_template=read_text(chat_template, "--chat-template") if chat_template else None,
        vision=vision,
        max_tiles=max_tiles,
    )
    if verbose:
        note(f"{opened.choice}; {_threads(threads, opened.threads)}; {opened.placement}")
    return opened


def flash_attention(flash_attn: str | None) -> bool | None:
    """The option's meaning; None leaves it open. OptionError for another word than on or off."""
    if flash_attn not in (None, "on", "off"):
        raise OptionError(f"--flash-attn {flash_attn}: unknown", remedy="on or off")
    return None if flash_attn is None else flash_attn == "on"


def _threads(asked: int | None, always: int | None) -> str:
    if always is None:
        return f"threads up to {cpu_threads()} (as many as are free)"
    return f"threads {always} ({'as asked' if asked else 'one a core'})"


def with_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the sampling options: it gets those that the user gave as ``params``, for ``Model.answer``."""

    @wraps(verb)
    def with_params(**given: Any) -> None:
        sampling = {name: given.pop(name) for name in SAMPLING}
        asked = {name: value for name, value in sampling.items() if value not in (None, [])}
        params = {name: OPTION_TEXTS[name].from_command_line(value, _flag(name)) for name, value in asked.items()}
        verb(params=params, **given)

    own = [parameter for name, parameter in signature(verb).parameters.items() if name != "params"]
    options = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
        for name, annotation in SAMPLING.items()
    ]
    at = next(at for at, parameter in enumerate(own) if parameter.name == "n_ctx")
    parameters = [*own[:at], *options, *own[at:]]
    with_params.__signature__ = signature(verb).replace(parameters=parameters)  # type: ignore[attr-defined] # typer reads it
    with_params.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_params


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def when_full(value: str) -> context_overflow.WhenFull:
    """``--when-full`` as the library's own value."""
    try:
        return context_overflow.check_when_full(value)
    except OptionError as error:
        raise OptionError(f"--when-full {value}: unknown", remedy=error.remedy) from error


def given(**params: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in params.items() if value is not None}
