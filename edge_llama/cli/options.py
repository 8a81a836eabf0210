"""Options that have one name everywhere, and what they open."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama import shortening
from edge_llama.cli.console import note
from edge_llama.cli.conversations import completed
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
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="Above 0: tokens become less likely each time that they come.")
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Above 0: tokens that have come before become less likely.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=VALUE", help="Add to the logit of a token, from -10000 to 10000. May be repeated."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Each token's log-probability and the N likeliest at its place, by the model itself, before any "
        "sampling option: on stderr, or in --json.",
    ),
]
JsonSchema = Annotated[Path | None, typer.Option(metavar="FILE", help="The answer is JSON that fits this schema.")]
Regex = Annotated[str | None, typer.Option(help="The whole answer fits this regular expression.")]
Grammar = Annotated[Path | None, typer.Option(metavar="FILE", help="The answer fits this grammar in Lark's syntax.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="The same seed gives the same answer with the same model file, on the same machine, "
        "after the same text was read before."
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="End the answer after so many tokens.")]
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
        chat_template=_read_text("--chat-template", chat_template) if chat_template else None,
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


def biases(given: Iterable[str]) -> dict[int, float]:
    """What ``ID=VALUE`` options say."""
    found: dict[int, float] = {}
    for text in given:
        token, _, value = text.partition("=")
        try:
            found[int(token)] = float(value)
        except ValueError as error:
            raise OptionError(f"--logit-bias {text}: expected ID=VALUE", remedy="for example 42=-3.5") from error
    return found


def read_schema(path: Path) -> Any:
    """The JSON in a file."""
    text = _read_text("--json-schema", path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--json-schema {path}: not JSON: {error}") from error


def read_grammar(path: Path) -> str:
    """The text of a grammar's file."""
    return _read_text("--grammar", path)


def _read_text(option: str, path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option} {path}: cannot be read: {error}") from error


def when_full(value: str) -> shortening.WhenFull:
    """``--when-full`` as the library's own value."""
    try:
        return shortening.check_when_full(value)
    except OptionError as error:
        raise OptionError(f"--when-full {value}: unknown", remedy=error.remedy) from error


def given(**params: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in params.items() if value is not None}
