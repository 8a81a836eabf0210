"""Which model a chat opens where none was named and none is built in: a person picks one that lies on this machine."""

import shlex
import sys
from collections.abc import Sequence

import typer

from edge_llama.backends.local_models import LocalModel, local_models
from edge_llama.cli.terminal.console import note
from edge_llama.files.artifact import MODEL_VARIABLE, has_default


def picked() -> str | None:
    """The name of the model that was picked; None where there is a default, nobody to ask, or nothing to pick.

    typer.Exit for whoever leaves by Ctrl-D.
    """
    if has_default() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    found = [model for model in local_models() if not model.problem]
    models = [model for model in found if model.kind == "model"]
    if not models:
        return None
    _show(models)
    if checkpoints := len(found) - len(models):
        note(f"and {checkpoints} to convert first: edge-llama models")
    name = models[_asked(len(models)) - 1].name
    note(f"to have it without being asked: export {MODEL_VARIABLE}={shlex.quote(name)}")
    return name


def _show(models: Sequence[LocalModel]) -> None:
    note("No model was named and none is built in. On this machine lie:")
    digits, width = len(str(len(models))), max(len(model.name) for model in models)
    for number, model in enumerate(models, 1):
        note(f"  {number:{digits}}  {model.name:{width}}  {_size(model):>9}  {model.store}")


def _size(model: LocalModel) -> str:
    """That of a file; a folder's several are not added up here."""
    return f"{model.path.stat().st_size / 1e9:,.2f} GB" if model.path.is_file() else ""


def _asked(count: int) -> int:
    """A number from 1 to ``count``; Enter alone is 1."""
    while True:
        sys.stderr.write(f"Which one? [1-{count}, Enter for 1, Ctrl-D leaves] " if count > 1 else "Open it? [Enter] ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            sys.stderr.write("\n")
            raise typer.Exit
        text = line.strip() or "1"
        if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= count:
            return int(text)
        note(f"{text[:40]}: expected a number from 1 to {count}")
