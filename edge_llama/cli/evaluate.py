"""``edge-llama evaluate``: perplexity, and how far a model's probabilities are from a reference's."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edge_llama.backends.base import Setting
from edge_llama.backends.local_models import found
from edge_llama.backends.registry import engine_of, open_artifact
from edge_llama.backends.towers import checkpoint_at, locate
from edge_llama.certifying.model_logits import LaterLogits, ModelLogits, check_same_vocabulary, continuations, pieces_of
from edge_llama.cli import evaluate_overlap, evaluate_picture, evaluate_table, options
from edge_llama.cli.terminal.console import bars, note, progress
from edge_llama.errors import InputError, OptionError
from edge_llama.fidelity.certified import read_certificate
from edge_llama.fidelity.comparison import Comparison, compare
from edge_llama.fidelity.compatible import Collector, Statistics, compatible_chunks
from edge_llama.fidelity.source import Chunk, LogitSource
from edge_llama.fidelity.texts import Text, chunks, default_texts, fingerprint, prompts, read_text
from edge_llama.files.artifact import Artifact
from edge_llama.host.devices import cpu_threads
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions, checked
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.hf_tokenizer import pieces
from edge_llama.prompts.tokenizer import Tokenizer
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
    own = _Own.at(model, {**setting, **opening})
    layers = _certified_layers(model) if plot else []
    with _reference(reference, own, setting | _place(opening), is_whole=compatible) as base:
        measured = _measured(asked, own, base, texts, quiet=quiet)
    if as_json:
        print(json.dumps(_described(measured, texts, n_ctx), ensure_ascii=False))  # noqa: T201
    else:
        setup = f"chunks of {n_ctx:,} tokens, {measured.setting}, {measured.where}"
        evaluate_table.show(measured.compared, measured.statistics, setup)
    if plot:
        evaluate_picture.draw(plot, measured.compared, layers)
        note(f"{plot}: written", quiet=quiet)


@dataclass(frozen=True, slots=True)
class _Own:
    """What is measured, as far as its file tells: its weights are loaded when the reference is ready."""

    artifact: Artifact
    tokenizer: Tokenizer
    opened: Callable[[], Model]

    @classmethod
    def at(cls, model: str | None, opening: OpenOptions) -> "_Own":
        """The model that was named. OptionError for options that it can't be opened with, InputError for an encoder."""
        artifact = open_artifact(locate(model))
        _check_writes(artifact)
        plan_engine(artifact, checked({**opening, "max_running": 1}))
        tokenizer = engine_of(artifact).vocabulary(artifact)
        return cls(artifact, tokenizer, lambda: options.open_model(model, opening))

    @property
    def name(self) -> str:
        """The file's."""
        return self.artifact.path.name


@dataclass(frozen=True, slots=True)
class _Measured:
    compared: Comparison
    statistics: Statistics | None
    """llama-perplexity's, if they were asked for."""
    setting: Setting
    where: str


def _measured(asked: "_Asked", own: _Own, base: "_Reference", texts: Sequence[Text], *, quiet: bool) -> _Measured:
    """The scores, after what is to be said of the texts."""
    for warning in evaluate_overlap.warnings(own.name, own.artifact.metadata(), texts):
        note(warning)
    cut = asked.chunks(own.tokenizer, texts, base.model, quiet=quiet)
    collector = Collector() if asked.is_compatible else None
    with closing(LaterLogits(own.artifact, own.opened, is_whole=asked.is_compatible)) as logits:
        with bars(quiet=quiet) as show:
            compared = compare(base.logits, logits, cut, show, collector)
        assert logits.model is not None  # noqa: S101 - it gave logits
        setting, where = logits.model.choice.setting, logits.model.placement.where
    return _Measured(compared, collector.statistics() if collector else None, setting, where)


def _certified_layers(model: str | None) -> list[float]:
    """The error of each layer, if the model carries a certificate. ArtifactError for one that is of another file."""
    certificate = read_certificate(found(model))
    return [part.error for part in certificate.layers] if certificate else []


def _check_writes(artifact: Artifact) -> None:
    if artifact.is_encoder:
        raise InputError(
            f"{artifact.path}: the model ({artifact.architecture}) embeds text and has no next token",
            remedy="evaluate a model that writes text",
        )


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

    def chunks(
        self, tokenizer: Tokenizer, texts: Sequence[Text], reference: Model | None, *, quiet: bool
    ) -> list[Chunk]:
        """What becomes of the texts; what of them is left out is told."""
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
def _reference(name: str | None, own: _Own, setting: OpenOptions, *, is_whole: bool) -> Iterator[_Reference]:
    """A model, a checkpoint or none; OptionError if its vocabulary is another than ``own``'s."""
    if name is None:
        yield _Reference()
        return
    path = found(name)
    if checkpoint_at(path) == "checkpoint":
        with _streamed(path, own, setting["threads"] or 1) as logits:
            yield _Reference(logits, None)
        return
    with options.open_model(name, setting) as model:
        file = model.artifact.path.name
        _check_writes(model.artifact)
        _check_vocabulary(own, file, pieces_of(model.tokenizer))
        with closing(ModelLogits(model, file, is_whole=is_whole)) as logits:
            yield _Reference(logits, model)


@contextmanager
def _streamed(path: Path, own: _Own, threads: int) -> Iterator[LogitSource]:
    from converters.evidence.streamed import StreamedTower  # noqa: PLC0415 - the runtime's verbs must not need this half
    from converters.sources import open_checkpoint  # noqa: PLC0415

    checkpoint = open_checkpoint(path)
    _check_vocabulary(own, checkpoint.path.name, _pieces_of(checkpoint))
    with StreamedTower(checkpoint, threads=threads, folder=Path(tempfile.gettempdir())) as logits:
        yield logits


def _pieces_of(checkpoint: "Checkpoint") -> list[bytes]:
    vocabulary = checkpoint.vocabulary
    return pieces(vocabulary.model, vocabulary.tokens, vocabulary.types)


def _check_vocabulary(own: _Own, name: str, others: Sequence[bytes]) -> None:
    check_same_vocabulary(own.name, pieces_of(own.tokenizer), name, others)


def _described(measured: _Measured, texts: Sequence[Text], n_ctx: int) -> dict[str, Any]:
    found = measured.compared.to_json()
    found |= {"n_ctx": n_ctx, "kv_format": measured.setting.kv_format, "texts_sha256": fingerprint(texts)}
    return found | ({"llama_perplexity": measured.statistics.to_json()} if measured.statistics else {})
