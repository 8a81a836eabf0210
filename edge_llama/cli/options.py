"""Options that have one name everywhere, and what they open."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama import shortening
from edge_llama.errors import OptionError
from edge_llama.model import Model

NCtx = Annotated[
    int | None, typer.Option("--n-ctx", help="Tokens of context. Default: what is useful and fits the memory.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads. Default: the cores that are free when an answer begins.")
]
FlashAttn = Annotated[
    str, typer.Option(metavar="on|off", help="Flash attention: faster prompts, slower answers on a CPU.")
]
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")]


def open_model(
    model: str | None, n_ctx: int | None, threads: int | None, flash_attn: str, chat_template: Path | None
) -> Model:
    """Open the model with the common options."""
    if flash_attn not in ("on", "off"):
        raise OptionError(f"--flash-attn {flash_attn}: unknown", remedy="on or off")
    template = _read_text("--chat-template", chat_template) if chat_template else None
    return Model(model, n_ctx=n_ctx, threads=threads, flash_attention=flash_attn == "on", chat_template=template)


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
