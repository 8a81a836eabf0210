"""``edge-llama verify``: tells whether a model is, bit for bit, what was written."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import edge_llama
from edge_llama.backends.local_models import found
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import checkpoint_at, read_towers
from edge_llama.cli import options, template_check, verify_reference
from edge_llama.cli.terminal.console import note, progress
from edge_llama.errors import NotVerifiableError, OptionError, printable
from edge_llama.files import checksums, manifest
from edge_llama.files.artifact import Bundle
from edge_llama.files.gguf_adapter import is_adapter, read_adapter
from edge_llama.files.integrity import verify as verify_file

Count = Callable[[int], None]
_LITTLE = 64  # tokens of context: nothing is answered


def verify(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A .gguf file, a bundle, a vision tower, an adapter, what --to safetensors wrote, or smollm2."
        ),
    ] = None,
    template: Annotated[
        bool,
        typer.Option("--template", help="Render conversations with the model's chat template and vocabulary instead."),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Measure the model beside the checkpoint that it was converted from, and what its certificate says "
            "with it. For --template: compare with transformers on this folder.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For --reference: CPU threads. Default: all cores.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a model's structure and every bit of its contents. Exit code 0: intact; 2: damaged; 1: it has no hashes.

    With --template: 0, conversations are rendered, as transformers does it; 1, some differ; 2, it can't be found out.
    With --reference: 0, it is what that checkpoint is, and what its certificate says was measured again; 1, it is not.

    Example: edge-llama verify llama-3.2-1b-q4_k_m.gguf
    """
    if template:
        _verify_template(model, reference, as_json=as_json, quiet=quiet)
        return
    if threads is not None and reference is None:
        raise OptionError(f"--threads {threads}: is for --reference", remedy="leave it out")
    path = found(model)
    if reference is not None:
        try:
            _checked(path, quiet=quiet)
        except NotVerifiableError as error:
            note(f"{error.message}; it is measured all the same", quiet=quiet or as_json)
        verify_reference.verify(path, reference, threads, as_json=as_json, quiet=quiet)
        return
    counts, work = _checked(path, quiet=quiet)
    if as_json:
        print(json.dumps({"path": str(work.path), "intact": True, **counts}))  # noqa: T201
    told = " in ".join(f"{number:,} {name}" for name, number in counts.items())
    note(f"{work.path}: intact, {told}", quiet=quiet or as_json)


def _checked(path: Path, *, quiet: bool) -> "tuple[dict[str, int], _Work]":
    """Check every bit; how many tensors and files that were."""
    if is_adapter(path):
        work = _of_adapter(path)
    else:
        work = _of_folder(path) if checkpoint_at(path) else _of_towers(read_towers(path))
    done = 0
    with progress(work.path.name, quiet=quiet) as show:

        def count(checked: int) -> None:
            nonlocal done
            done += checked
            if show:
                show(done, work.nbytes)

        work.check(count)
    counts = {"tensors": work.n_tensors, "files": work.n_files}
    return {name: number for name, number in counts.items() if number is not None}, work


def _verify_template(model: str | None, reference: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Exit code 1 if any conversation is rendered otherwise than by transformers."""
    with edge_llama.open(model, n_ctx=_LITTLE, max_running=1) as opened:
        findings = list(template_check.check(opened, reference))
        path = str(opened.artifact.path)
    if as_json:
        found = {"path": path, "reference": None if reference is None else str(reference)}
        print(json.dumps(found | {"conversations": [finding.to_json() for finding in findings]}))  # noqa: T201
    for finding in [] if as_json or quiet else findings:
        tokens = "" if finding.tokens is None else f", {finding.tokens:,} tokens"
        why = f": {finding.why}" if finding.why else ""
        print(printable(f"{finding.conversation}: {finding.outcome}{tokens}{why}"))  # noqa: T201
    if differing := sum(finding.outcome == "differs" for finding in findings):
        note(f"{path}: {differing} of {len(findings)} conversations differ from transformers'", quiet=as_json)
        raise typer.Exit(1)
    compared = "compared with transformers" if reference else "not compared: no --reference was given"
    note(f"{path}: {len(findings)} conversations, {compared}", quiet=quiet or as_json)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is checked: so many bytes, by ``check``, which is given what counts them."""

    path: Path
    nbytes: int
    check: Callable[[Count], object]
    n_tensors: int | None = None
    n_files: int | None = None


def _of_adapter(path: Path) -> _Work:
    adapter = read_adapter(path)
    return _Work(path, adapter.nbytes, lambda count: verify_file(adapter.header, count), len(adapter.header.tensors))


def _of_towers(towers: Bundle) -> _Work:
    text = open_artifact(towers.text) if towers.text else None
    tensors = (*(text.tensors if text else ()), *(towers.vision.tensors if towers.vision else ()))
    files = towers.manifest.files if towers.manifest else {}
    nbytes = sum(file.nbytes for file in files.values()) or sum(tensor.nbytes for tensor in tensors)

    def check(count: Count) -> None:
        if towers.manifest:
            manifest.verify(towers.path, count)
            return
        if text:
            text.verify(count)
        if towers.vision and towers.vision.header:
            verify_file(towers.vision.header, count)

    return _Work(towers.path, nbytes, check, len(tensors), len(files) or None)


def _of_folder(folder: Path) -> _Work:
    """A checkpoint: one that was written here carries SHA256SUMS; of another only the structure can be told."""
    if not (folder / checksums.NAME).is_file():
        from converters.sources import open_checkpoint  # noqa: PLC0415 - the runtime's verbs must not need this half

        open_checkpoint(folder)
        raise NotVerifiableError(
            f"{folder}: its structure is sound, but it carries no hashes ({checksums.NAME}) to verify its contents",
            remedy="compare it with its publisher's hashes",
        )
    found = checksums.read(folder)
    nbytes = sum((folder / name).stat().st_size for name in found)
    return _Work(folder, nbytes, lambda count: checksums.verify(folder, count), n_files=len(found))
