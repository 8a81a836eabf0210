"""``edge-llama evaluate``: perplexity, and how far a model's probabilities are from a reference's."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edge_llama.backends.local_models import found
from edge_llama.backends.towers import checkpoint_at
from edge_llama.cli import evaluate_overlap, evaluate_picture, evaluate_table, options
from edge_llama.cli.model_logits import ModelLogits, check_same_vocabulary, continuations, pieces_of
from edge_llama.cli.terminal.console import note, progress
from edge_llama.errors import InputError, OptionError
from edge_llama.fidelity.comparison import Comparison, Progress, compare
from edge_llama.fidelity.compatible import Collector, Statistics, compatible_chunks
from edge_llama.fidelity.source import Chunk, LogitSource
from edge_llama.fidelity.texts import Text, chunks, default_texts, fingerprint, prompts, read_text
from edge_llama.host.devices import cpu_threads
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions
from edge_llama.prompts.hf_tokenizer import pieces
from edge_llama.sampling.params import check_whole

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint

_SHORTEST = 16


@options.with_opening("n_batch", "flash_attention", "kv_format", "device", *options.SHARES)
def evaluate(
    *,
    model: Annotated[str | None, typer.Argument(help="A .gguf file, a folder with a model, or smollm2.")] = None,
    text: Annotated[
        list[Path] | None, typer.Argument(metavar="[TEXT]...", help="Files of text. Default: the project's own texts.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL|CHECKPOINT", help="What it shall agree with: a checkpoint is run layer by layer."),
    ] = None,
    compatible: Annotated[
        bool, typer.Option("--compatible", help="Score and tell what llama-perplexity --kl-divergence does, too.")
    ] = False,
    n_ctx: Annotated[int, typer.Option(help="Tokens of a chunk, each read from an empty context.")] = 512,
    max_chunks: Annotated[
        int | None,
        typer.Option(metavar="N", help="Score N chunks alone, from all of the texts; with --compatible the first."),
    ] = None,
    answers: Annotated[
        int, typer.Option("--continuations", metavar="N", help="Score N answers that the reference gives, too.")
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.html|png", help="Draw how the divergence is spread.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads. Default: one a core.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --plot.")] = False,
    opening: OpenOptions,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on texts: perplexity, and with --reference KL divergence and how often both choose the same.

    Bounds are of 95 % confidence, from whole stretches of tokens drawn anew. The KV cache of MODEL alone is as --kv
    says: with MODEL as its own reference, a format's cost is measured.

    Example: edge-llama evaluate llama-3.2-1b-q4_k_m.gguf --reference Llama-3.2-1B-Instruct/
    """
    asked = _Asked(n_ctx, max_chunks, answers, is_compatible=compatible)
    asked.check(reference)
    texts = [read_text(path) for path in text] if text else default_texts("evaluation")
    if plot:
        evaluate_picture.check(plot, force=force)
        if reference is None:
            raise OptionError("--plot draws the divergence from a reference", remedy="name it: --reference MODEL")
    setting: OpenOptions = {"tune": False, "n_ctx": n_ctx, "threads": threads or cpu_threads()}
    with options.open_model(model, {**setting, **opening}) as own:
        with _reference(reference, own, setting | _place(opening), is_whole=compatible) as base:
            compared, statistics = _measured(asked, own, base, texts, quiet=quiet)
        if as_json:
            print(json.dumps(_described(compared, statistics, texts, own, n_ctx), ensure_ascii=False))  # noqa: T201
        else:
            setup = f"chunks of {n_ctx:,} tokens, {own.choice.setting}, {own.placement.where}"
            evaluate_table.show(compared, statistics, setup)
    if plot:
        evaluate_picture.draw(plot, compared)
        note(f"{plot}: written", quiet=quiet)


def _measured(
    asked: "_Asked", own: Model, base: "_Reference", texts: Sequence[Text], *, quiet: bool
) -> tuple[Comparison, Statistics | None]:
    """The scores, and llama-perplexity's statistics if they are asked for."""
    file = own.artifact.path.name
    for warning in evaluate_overlap.warnings(file, own.artifact.metadata(), texts):
        note(warning)
    cut = asked.chunks(own, texts, base.model, quiet=quiet)
    collector = Collector() if asked.is_compatible else None
    with _shown(quiet=quiet) as show, _logits_of(own, is_whole=asked.is_compatible) as logits:
        compared = compare(base.logits, logits, cut, show, collector)
    return compared, collector.statistics() if collector else None


def _place(opening: OpenOptions) -> OpenOptions:
    """What of the options is about devices: the reference goes where the model goes."""
    names = ("device", *options.SHARES)
    return cast("OpenOptions", {name: value for name, value in opening.items() if name in names})


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is scored."""

    n_ctx: int
    max_chunks: int | None
    answers: int
    is_compatible: bool

    def check(self, reference: str | None) -> None:
        """OptionError for what is out of range or does not go together."""
        check_whole("n_ctx", self.n_ctx, _SHORTEST, 2**31 - 1)
        check_whole("continuations", self.answers, 0, len(prompts()))
        if self.max_chunks is not None:
            check_whole("max_chunks", self.max_chunks, 1, 2**31 - 1)
        if self.is_compatible and reference is None:
            raise OptionError("--compatible compares with a reference", remedy="name it: --reference MODEL")
        if self.is_compatible and self.answers:
            raise OptionError(
                "--compatible scores texts alone, as llama-perplexity does", remedy="leave --continuations out"
            )

    def chunks(self, model: Model, texts: Sequence[Text], reference: Model | None, *, quiet: bool) -> list[Chunk]:
        """What becomes of the texts; what of them is left out is told."""
        tokenizer = model.tokenizer
        found: list[Chunk]
        if self.is_compatible:
            bos = tokenizer.bos
            each = (
                compatible_chunks(text.name, text.content, tokenizer.encode, bos, self.n_ctx, text.domain)
                for text in texts
            )
            found = [chunk for chunks in each for chunk in chunks]
        else:
            cut = chunks(texts, tokenizer.encode, self.n_ctx, bos=tokenizer.bos)
            found = cut.chunks
            left = cut.n_left_over
            note(f"{left:,} tokens at the texts' ends fill no chunk and are left out", quiet=quiet or not left)
        if self.max_chunks is not None and len(found) > self.max_chunks:
            note(f"{self.max_chunks:,} of {len(found):,} chunks are scored", quiet=quiet)
            found = found[: self.max_chunks] if self.is_compatible else _spread(found, self.max_chunks)
        if self.answers:
            if reference is None:
                raise InputError(
                    "--continuations needs a reference that answers", remedy="give a model in place of a checkpoint"
                )
            with progress("answering", quiet=quiet, unit="answers") as show:
                found += continuations(reference, prompts()[: self.answers], self.n_ctx, show)
        return found


def _spread(found: Sequence[Chunk], count: int) -> list[Chunk]:
    """So many, at even distances."""
    return [found[number * len(found) // count] for number in range(count)]


@dataclass(frozen=True, slots=True)
class _Reference:
    logits: LogitSource | None = None
    """None: there is none."""
    model: Model | None = None
    """None: it is a checkpoint."""


@contextmanager
def _reference(name: str | None, own: Model, setting: OpenOptions, *, is_whole: bool) -> Iterator[_Reference]:
    """A model, a checkpoint or none; OptionError if its vocabulary is another than ``own``'s."""
    if name is None:
        yield _Reference()
        return
    path = found(name)
    if checkpoint_at(path) == "checkpoint":
        with _streamed(path, own, setting["threads"] or 1) as logits:
            yield _Reference(logits, None)
        return
    with options.open_model(name, setting) as model, _logits_of(model, is_whole=is_whole) as logits:
        _check_vocabulary(own, name, pieces_of(model.tokenizer))
        yield _Reference(logits, model)


def _logits_of(model: Model, *, is_whole: bool) -> "closing[ModelLogits]":
    return closing(ModelLogits(model, model.artifact.path.name, is_whole=is_whole))


@contextmanager
def _streamed(path: Path, own: Model, threads: int) -> Iterator[LogitSource]:
    from converters.evidence.streamed import StreamedTower  # noqa: PLC0415 - the runtime's verbs must not need this half
    from converters.sources import open_checkpoint  # noqa: PLC0415

    checkpoint = open_checkpoint(path)
    _check_vocabulary(own, checkpoint.path.name, _pieces_of(checkpoint))
    with StreamedTower(checkpoint, threads=threads, folder=Path(tempfile.gettempdir())) as logits:
        yield logits


def _pieces_of(checkpoint: "Checkpoint") -> list[bytes]:
    vocabulary = checkpoint.vocabulary
    return pieces(vocabulary.model, vocabulary.tokens, vocabulary.types)


def _check_vocabulary(own: Model, name: str, others: Sequence[bytes]) -> None:
    check_same_vocabulary(own.artifact.path.name, pieces_of(own.tokenizer), name, others)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """A bar for each thing that is done, one after the other."""
    with ExitStack() as bars:
        label, update = "", None

        def show(what: str, done: int, total: int) -> None:
            nonlocal label, update
            if what != label:
                bars.close()
                label, update = what, bars.enter_context(progress(what, quiet=quiet, unit="tokens"))
            if update:
                update(done, total)

        yield show


def _described(
    compared: Comparison, statistics: Statistics | None, texts: Sequence[Text], model: Model, n_ctx: int
) -> dict[str, Any]:
    found = compared.to_json()
    found |= {"n_ctx": n_ctx, "kv_format": model.choice.setting.kv_format, "texts_sha256": fingerprint(texts)}
    return found | ({"llama_perplexity": statistics.to_json()} if statistics else {})
