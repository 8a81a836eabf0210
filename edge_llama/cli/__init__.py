"""The command line: one file per verb. The only place that joins the runtime and the converter."""

import os
import sys

import typer

from edge_llama.cli import chat, convert, inspect, run, verify
from edge_llama.errors import EdgeLlamaError

app = typer.Typer(
    name="edge-llama",
    help="Convert Llama checkpoints into small files, and run them on this device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (chat, run, convert, inspect, verify):
    app.command()(verb.__dict__[verb.__name__.rpartition(".")[2]])


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 on Ctrl-C, 143 on SIGTERM."""
    # Threads of llama.cpp that wait should soon sleep: by default they spin and starve each other on a busy machine.
    # libgomp reads this when it is loaded, so it is set here, in our own process, and never by the library.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except EdgeLlamaError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, exit_code: int) -> None:
    is_help = "\n" in message  # what a bare `edge-llama` prints
    print(message if is_help else f"edge-llama: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
