"""A part of ``verify``: the model beside its checkpoint, and what its certificate says beside what is measured now."""

import json
from functools import partial
from pathlib import Path

import typer

from edge_llama.backends import local_models
from edge_llama.certifying import Measured, Measuring, measure, open_reference
from edge_llama.cli import certificate_table
from edge_llama.cli.terminal.console import bars, note
from edge_llama.errors import printable
from edge_llama.fidelity.certificate import Certificate
from edge_llama.fidelity.certified import read_certificate
from edge_llama.fidelity.tolerances import differences


def verify(path: Path, reference: Path, threads: int | None, *, as_json: bool, quiet: bool) -> None:
    """Exit code 1 if the model is not what ``reference`` is, or its certificate says what is not so."""
    claimed = read_certificate(path)
    checkpoint = open_reference(reference if reference.exists() else local_models.named(reference) or reference)
    with bars(quiet=quiet) as tell:
        show = partial(tell, unit="done")
        if claimed is None:
            how = Measuring.by_default(checkpoint, threads=threads, on_progress=show)
        else:
            how = Measuring.again(claimed, threads=threads, on_progress=show)
        measured = measure(checkpoint, path, how, claimed)
    problems = [*measured.faults, *_contradicted(claimed, measured)]
    if as_json:
        found = measured.certificate
        told = {"path": str(path), "reference": str(reference), "problems": problems}
        print(json.dumps(told | {"measured": found.to_json() if found else None, **_claims(claimed)}))  # noqa: T201
    else:
        _show(path, claimed, measured, problems, quiet=quiet)
    if problems:
        raise typer.Exit(1)


def _contradicted(claimed: Certificate | None, measured: Measured) -> list[str]:
    if claimed is None or measured.certificate is None:
        return []
    return list(map(str, differences(claimed, measured.certificate)))


def _claims(claimed: Certificate | None) -> dict[str, object]:
    return {"certificate": claimed.to_json() if claimed else None}


def _show(path: Path, claimed: Certificate | None, measured: Measured, problems: list[str], *, quiet: bool) -> None:
    for problem in problems:
        print(printable(problem))  # noqa: T201
    for line in certificate_table.lines(measured.certificate) if measured.certificate else ():
        note(line.replace("certificate:", "measured:", 1), quiet=quiet)
    if problems:
        note(f"{path}: {len(problems)} of its parts or numbers are not what the checkpoint gives", quiet=quiet)
    elif claimed is None:
        note(f"{path}: it is what the checkpoint is, rounded; it carries no certificate to compare with", quiet=quiet)
    else:
        note(f"{path}: it is what the checkpoint is, rounded, and what its certificate says", quiet=quiet)
