"""Options that have one name everywhere, and what they open."""

import json
from collections.abc import Callable, Iterable, Sequence
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
from edge_llama.planning.options import OpenOptions, Option, checked, described
from edge_llama.prompts import context_overflow

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say with which settings the model runs, and why.")]
System = Annotated[str | None, typer.Option(help="The system message.")]
SAMPLING: dict[str, Any] = {
    "temperature": Annotated[float | None, typer.Option(help="0 takes the likeliest token; higher is more varied.")],
    "top_k": Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens; 0: all.")],
    "top_p": Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens that make up this probability.")
    ],
    "min_p": Annotated[
        float | None, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")
    ],
    "repetition_penalty": Annotated[float | None, typer.Option(help="Above 1: recent tokens become less likely.")],
    "frequency_penalty": Annotated[
        float | None, typer.Option(help="Above 0: tokens become less likely each time that they come.")
    ],
    "presence_penalty": Annotated[
        float | None, typer.Option(help="Above 0: tokens that have come before become less likely.")
    ],
    "penalty_window": Annotated[int | None, typer.Option(help="Tokens that the penalties look back over.")],
    "logit_bias": Annotated[
        list[str] | None,
        typer.Option(metavar="ID=VALUE", help="Add to the logit of a token, from -10000 to 10000. May be repeated."),
    ],
    "logprobs": Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Each token's log-probability and the N likeliest at its place, by the model itself, before any "
            "sampling option: on stderr, or in --json.",
        ),
    ],
    "json_schema": Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer is JSON that fits this schema.")
    ],
    "regex": Annotated[str | None, typer.Option(help="The whole answer fits this regular expression.")],
    "grammar": Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer fits this grammar in Lark's syntax.")
    ],
    "seed": Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same answer with the same model file, on the same machine, "
            "after the same text was read before."
        ),
    ],
    "max_tokens": Annotated[int | None, typer.Option(help="End the answer after so many tokens.")],
    "stop": Annotated[list[str] | None, typer.Option(help="End the answer before this text. May be repeated.")],
}
"""An option for each field of SamplingParams, for every verb that answers; see :func:`with_sampling`."""
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


def with_opening(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of ``open`` in place of its parameter ``opening``, which gets those that were given.

    ``names``: only these; else all that are for the command line.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        options = {name: option for name, option in described().items() if option.help and (not names or name in names)}
        own = list(signature(verb).parameters.values())
        at = next(at for at, parameter in enumerate(own) if parameter.name == "opening")
        own[at : at + 1] = [_parameter(name, option) for name, option in options.items()]

        @wraps(verb)
        def with_options(**given: Any) -> None:
            asked = {name: given.pop(name) for name in options}
            read = {name: _opening(options[name], _flag(name, options[name]), value) for name, value in asked.items()}
            verb(opening=checked(read), **given)

        return _with_parameters(with_options, own)

    return decorate


def _parameter(name: str, option: Option) -> Parameter:
    type_ = str if option.type is bool else option.type
    default = None if option.default is None else option.default
    kind = type_ if default is not None else type_ | None
    about = typer.Option(_flag(name, option), metavar=option.metavar, help=option.help)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about])


def _flag(name: str, option: Option) -> str:
    return "--" + (option.flag or name.replace("_", "-"))


def _opening(option: Option, flag: str, value: Any) -> Any:
    """What the command line's ``value`` means to ``open``."""
    if value is None:
        return None
    if option.type is bool:
        return _on_or_off(flag, value)
    return read_text(value, flag) if option.is_file else value


def _on_or_off(flag: str, word: str) -> bool:
    if word not in ("on", "off"):
        raise OptionError(f"{flag} {word}: unknown", remedy="on or off")
    return word == "on"


def _with_parameters(verb: Callable[..., None], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """``verb`` as typer sees it: with these parameters."""
    verb.__signature__ = signature(verb).replace(parameters=parameters)  # type: ignore[attr-defined] # typer reads it
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb


def open_model(model: str | None, opening: OpenOptions, *, verbose: bool = False) -> Model:
    """Open the model with the common options; settings that are not given are measured once and remembered."""
    options = opening.copy()
    options.setdefault("tune", True)
    opened = Model(model, **options)
    if verbose:
        seen = f"; vision: {opened.vision_placement}" if opened.vision_placement else ""
        note(f"{opened.choice}; {_threads(opening.get('threads'), opened.threads)}; {opened.placement}{seen}")
    return opened


def _threads(asked: int | None, always: int | None) -> str:
    if always is None:
        return f"threads up to {cpu_threads()} (as many as are free)"
    return f"threads {always} ({'as asked' if asked else 'one a core'})"


def with_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the sampling options: it gets those that the user gave as ``params``, for ``Model.answer``."""

    @wraps(verb)
    def with_params(**given: Any) -> None:
        sampling = {name: given.pop(name) for name in SAMPLING}
        verb(params={name: _read(name, value) for name, value in sampling.items() if value not in (None, [])}, **given)

    own = [parameter for name, parameter in signature(verb).parameters.items() if name != "params"]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in SAMPLING.items()
    ]
    at = next(at for at, parameter in enumerate(own) if parameter.name == "n_ctx")
    return _with_parameters(with_params, [*own[:at], *options, *own[at:]])


def _read(name: str, value: Any) -> Any:
    """The value of a sampling option for SamplingParams; OptionError if it can't be read."""
    if name == "logit_bias":
        return biases(value, "--logit-bias")
    if name == "json_schema":
        return read_schema(value, "--json-schema")
    return read_text(value, "--grammar") if name == "grammar" else value


def biases(given: Iterable[str], option: str) -> dict[int, float]:
    """What ``ID=VALUE`` texts say."""
    found: dict[int, float] = {}
    for text in given:
        token, _, value = text.partition("=")
        try:
            found[int(token)] = float(value)
        except ValueError as error:
            raise OptionError(f"{option} {text}: expected ID=VALUE", remedy="for example 42=-3.5") from error
    return found


def read_schema(path: Path, option: str) -> Any:
    """The JSON in a file."""
    return parse_schema(read_text(path, option), f"{option} {path}")


def parse_schema(text: str, where: str) -> Any:
    """JSON; OptionError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where}: not JSON: {error}") from error


def read_text(path: Path, option: str) -> str:
    """The text of a file, UTF-8."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option} {path}: cannot be read: {error}") from error


def when_full(value: str) -> context_overflow.WhenFull:
    """``--when-full`` as the library's own value."""
    try:
        return context_overflow.check_when_full(value)
    except OptionError as error:
        raise OptionError(f"--when-full {value}: unknown", remedy=error.remedy) from error


def given(**params: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in params.items() if value is not None}
