"""Options that have one name everywhere, and what they open."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli.chat_session.conversations import completed
from edge_llama.cli.terminal.console import native_output_to_stderr, note
from edge_llama.errors import OptionError
from edge_llama.files import compiled
from edge_llama.files.artifact import existing, server_url
from edge_llama.host.devices import cpu_threads
from edge_llama.model import Model
from edge_llama.opening import open  # noqa: A004 - the API's name
from edge_llama.planning.options import OpenOptions, checked, described
from edge_llama.prompts import context_overflow
from edge_llama.sampling.option_text import OptionText
from edge_llama.sampling.params import OPTION_TEXTS

Isolate = Annotated[
    bool,
    typer.Option("--isolate", help="Run the model in a process of its own: what kills it does not end the program."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say with which settings the model runs, and why.")]
System = Annotated[str | None, typer.Option(help="The system message.")]


SHARES = ("strict_device", "split_mode", "tensor_split", "cpu_moe", "provider_options")
"""Options of ``open`` about how devices share a model: where there is ``--device``, there are these."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def size(text: str, flag: str) -> int:
    """``500M`` or ``2G``, in thousands as llama.cpp counts, or a plain number. OptionError for anything else."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isascii() or not digits.isdigit() or int(digits) == 0 or unit not in _UNITS:
        raise OptionError(f"{flag} {text}: expected a size such as 500M or 2G")
    return int(digits) * _UNITS[unit]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _annotation(text: OptionText, *flags: str) -> Any:
    kind: Any = Path if text.is_file else list[text.kind] if text.is_repeated else text.kind  # type: ignore[name-defined] # a type to typer
    return Annotated[kind | None, typer.Option(*flags, metavar=text.metavar, help=text.help)]


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
HideThinking = Annotated[
    bool, typer.Option("--hide-thinking", help="Do not show on a terminal what the model thinks before it answers.")
]
Retrieve = Annotated[
    bool,
    typer.Option("--retrieve", help="Where files don't fit, find the passages of them that belong to the message."),
]
EmbeddingModel = Annotated[
    str | None,
    typer.Option(
        "--embedding-model", metavar="MODEL", help="Find passages by this model's embeddings too, not by words alone."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")]


Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE[@WEIGHT]",
        help="A LoRA adapter for a GGUF model, a .gguf file that convert wrote of one. May be repeated: all are added.",
    ),
]


def with_opening(*names: str, also_remote: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of ``open`` in place of its parameter ``opening``, which gets those that were given.

    ``names``: only these; else all that are for the command line, those for models on a server if ``also_remote``.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        options = {
            name: (option, option.text)
            for name, option in described().items()
            if option.text and (name in names or (not names and (also_remote or option.where != "remote")))
        }
        own = list(signature(verb).parameters.values())
        at = next(at for at, parameter in enumerate(own) if parameter.name == "opening")
        own[at : at + 1] = [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(text, _flag(option.flag or name)),
            )
            for name, (option, text) in options.items()
        ]

        @wraps(verb)
        def with_options(**given: Any) -> None:
            asked = {name: given.pop(name) for name in options}
            opening = {
                name: text.from_command_line(asked[name], _flag(option.flag or name))
                for name, (option, text) in options.items()
                if asked[name] not in (None, [])
            }
            verb(opening=checked(opening), **given)

        return _with_parameters(with_options, own)

    return decorate


def _with_parameters(verb: Callable[..., None], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """``verb`` as typer sees it: with these parameters."""
    verb.__signature__ = signature(verb).replace(parameters=parameters)  # type: ignore[attr-defined] # typer reads it
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb


def open_model(
    model: str | None,
    opening: OpenOptions,
    *,
    isolate: bool = False,
    verbose: bool = False,
    also_remote: bool = False,
) -> Model:
    """Open the model with the common options; settings that are not given are measured once and remembered.

    Without ``also_remote`` a server's URL is refused, as by all verbs that work on files.
    """
    if also_remote and server_url(model):
        return _open_remote(model, opening, isolate=isolate, verbose=verbose)
    if server_url(model):
        existing(model)  # says what is given here instead
    options = opening.copy()
    options.setdefault("tune", True)
    options.setdefault("max_running", 1)  # one person, one question at a time
    was_compiled = model is not None and (Path(model) / compiled.NAME).exists()  # so auto is an NPU
    if was_compiled or {opening.get("device"), opening.get("vision_device")} - {None, "auto", "cpu"}:
        native_output_to_stderr()
    opened = open(model, isolate=isolate, **options)
    if verbose:
        seen = f"; vision: {opened.vision_placement}" if opened.vision_placement else ""
        note(f"{opened.choice}; {_threads(opening.get('threads'), opened.threads)}; {opened.placement}{seen}")
    return opened


def open_embedding_model(name: str) -> Model:
    """The model that embeds passages of documents. InputError, before it is loaded for nothing, if it can't."""
    opened = open_model(name, {"tune": False})
    try:
        opened.pooling()
    except BaseException:
        opened.close()
        raise
    return opened


def _open_remote(model: str | None, opening: OpenOptions, *, isolate: bool, verbose: bool) -> Model:
    """Nothing is measured or kept here for it."""
    options = opening.copy()
    options.pop("cache_dir", None)  # the chat's own, for whichever model
    options.pop("cache_tagged_only", None)
    opened = open(model, isolate=isolate, **options)
    if verbose:
        note(str(opened.placement))
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
        asked = {name: value for name, value in sampling.items() if value not in (None, [])}
        params = {name: OPTION_TEXTS[name].from_command_line(value, _flag(name)) for name, value in asked.items()}
        verb(params=params, **given)

    own = [parameter for name, parameter in signature(verb).parameters.items() if name != "params"]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in SAMPLING.items()
    ]
    at = next(at for at, parameter in enumerate(own) if parameter.name == "n_ctx")
    return _with_parameters(with_params, [*own[:at], *options, *own[at:]])


def when_full(value: str) -> context_overflow.WhenFull:
    """``--when-full`` as the library's own value."""
    try:
        return context_overflow.check_when_full(value)
    except OptionError as error:
        raise OptionError(f"--when-full {value}: unknown", remedy=error.remedy) from error


def given(**params: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in params.items() if value is not None}
