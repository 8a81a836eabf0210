"""The command line: one file per verb, found here by its name. It joins the runtime and the converter."""

import io
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Annotated, TextIO, cast

import typer

from edge_llama.cli.terminal.optional_values import Verb
from edge_llama.errors import EdgeLlamaError

app = typer.Typer(
    name="edge-llama",
    help="Convert Llama checkpoints into small files, and run them on this device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_ORDER = (
    *(
        "chat",
        "run",
        "serve",
        "embed",
        "convert",
        "calibrate",
        "compile",
        "inspect",
        "fit",
        "verify",
        "evaluate",
        "models",
        "bench",
        "devices",
        "doctor",
    ),
    "history",
)
"""Of verbs in the help; others follow by their names."""


def _add_verbs() -> None:
    """Every module here that has a function of its own name, or a ``VERBS`` of several, is a verb."""
    names = [found.name for found in iter_modules(__path__) if not found.ispkg]
    for name in sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)):
        module = import_module(f"{__name__}.{name}")
        if several := getattr(module, "VERBS", None):
            app.add_typer(several, name=name)
        elif verb := getattr(module, name, None):
            app.command(cls=Verb)(verb)


_add_verbs()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edge-llama {version('edge-llama')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 on Ctrl-C, 143 on SIGTERM."""
    # Threads of llama.cpp that wait should soon sleep: by default they spin and starve each other on a busy machine.
    # libgomp reads this when it is loaded, so it is set here, in our own process, and never by the library.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    _prepare_streams()
    try:
        sys.exit(app(standalone_mode=False, prog_name=app.info.name))  # by `python -m` and a frozen program, too
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except EdgeLlamaError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # a name that is too long, an output that is full: no bug of ours
        _fail(f"{error.filename or 'input or output'}: {error.strerror}", 2 if error.filename else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _prepare_streams() -> None:
    """Streams that were closed become empty ones; characters that the terminal's encoding lacks become escapes."""
    sys.stdin = sys.stdin or _nothing(os.O_RDONLY, "r")
    sys.stdout = sys.stdout or _nothing(os.O_WRONLY, "w")
    sys.stderr = sys.stderr or _nothing(os.O_WRONLY, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nothing(flags: int, mode: str) -> TextIO:
    """An empty stream, for as long as the process lives: as Python's own it is not closed at the end."""
    return cast("TextIO", open(os.open(os.devnull, flags), mode, encoding="utf-8", closefd=False))


def _fail(message: str, exit_code: int) -> None:
    is_help = "\n" in message  # what a bare `edge-llama` prints
    print(message if is_help else f"edge-llama: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
