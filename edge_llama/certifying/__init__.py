"""A model beside the checkpoint that it was converted from: measured, certified, and what its certificate says checked.

The converter measures matrices and layers, the engine that runs the model gives its logits; here both come together.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_llama.backends.towers import read_towers
from edge_llama.certifying import vision
from edge_llama.certifying.model_logits import ModelLogits
from edge_llama.errors import ArtifactError, FidelityError, InputError, NotVerifiableError, OptionError
from edge_llama.fidelity.certificate import Certificate
from edge_llama.fidelity.certified import put_at, subject_at
from edge_llama.fidelity.comparison import Progress
from edge_llama.fidelity.texts import Text, default_texts, fingerprint
from edge_llama.host.devices import cpu_threads
from edge_llama.opening import open  # noqa: A004 - the API's name

if TYPE_CHECKING:
    from converters import Plan
    from converters.certifying import Examined
    from converters.checkpoint import Checkpoint

_LEAVE_OUT = "leave --certify out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How it is measured: on which texts, in chunks of how many tokens, and of how many in all."""

    texts: Sequence[Text]
    n_ctx: int
    n_tokens: int
    threads: int
    on_progress: Progress | None = None
    calibration: Sequence[Path] = ()

    @classmethod
    def by_default(
        cls,
        reference: "Checkpoint",
        *,
        threads: int | None = None,
        on_progress: Progress | None = None,
        calibration: Sequence[Path] = (),
    ) -> "Measuring":
        """4,096 tokens, spread over all domains of the project's own texts."""
        from converters.certifying import N_TOKENS, context_for  # noqa: PLC0415 - the runtime must not need this half

        return cls(
            texts=default_texts("evaluation"),
            n_ctx=context_for(reference),
            n_tokens=N_TOKENS,
            threads=threads or cpu_threads(),
            on_progress=on_progress,
            calibration=calibration,
        )

    @classmethod
    def again(
        cls, claimed: Certificate, *, threads: int | None = None, on_progress: Progress | None = None
    ) -> "Measuring":
        """As ``claimed`` says it was. InputError if these are other texts than this version has."""
        texts = default_texts("evaluation")
        if claimed.evaluation != fingerprint(texts):
            writer = claimed.versions.get("edge-llama", "another version")
            raise InputError(
                f"the certificate is of the texts {claimed.evaluation[:16]}…, this edge-llama has "
                f"{fingerprint(texts)[:16]}…",
                remedy=f"verify it with edge-llama {writer}, or convert again",
            )
        n_ctx = claimed.numbers.n_ctx
        n_chunks = max(1, claimed.numbers.n_tokens // max(1, n_ctx - 1))
        return cls(
            texts=texts,
            n_ctx=n_ctx,
            n_tokens=n_chunks * n_ctx,
            threads=threads or cpu_threads(),
            on_progress=on_progress,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found: ``faults`` name what is wrong; the certificate is None if that was seen before anything ran."""

    certificate: Certificate | None
    faults: tuple[str, ...]


def measure(reference: "Checkpoint", path: Path, how: Measuring, claimed: Certificate | None = None) -> Measured:
    """The model at ``path``, a file or a bundle, beside ``reference``; ``claimed`` is the certificate that it has.

    Nothing is run where matrices, structure or vocabulary are wrong already, or are of another checkpoint than claimed.

    CheckpointError and ArtifactError for what is not sound, OptionError for chunks that don't fit, OutputError for a
    disk without room for hidden states, EngineError if an engine fails.
    """
    from converters import certifying  # noqa: PLC0415 - the runtime must not need this half
    from edge_llama.backends.llama_cpp.vocabulary_probe import encode  # noqa: PLC0415

    towers = read_towers(path)
    if towers.text is None:
        raise ArtifactError(f"{path}: holds no text tower to measure", remedy="give a model that has one")
    examined = certifying.examine(
        reference, towers.text, threads=how.threads, encode_gguf=encode, on_progress=how.on_progress
    )
    found = tuple(map(str, examined.faults))
    if claimed is not None and claimed.source_sha256 != examined.source_sha256:
        found = (f"source: the certificate is of the weights {claimed.source_sha256[:16]}…, these are "
                 f"{examined.source_sha256[:16]}…", *found)  # fmt: skip
    if found:
        return Measured(None, found)
    features = vision.errors(reference, towers.vision, how.threads) if towers.vision else ()
    measured = _run(reference, path, towers.text, examined, features, how)
    wrong = vision.faults(features, towers.vision) if towers.vision else ()
    return Measured(measured.certificate, (*measured.faults, *wrong))


def _run(
    reference: "Checkpoint",
    path: Path,
    text: Path,
    examined: "Examined",
    features: Sequence[float],
    how: Measuring,
) -> Measured:
    from converters import certifying  # noqa: PLC0415 - likewise

    with ExitStack() as stack:
        model = stack.enter_context(
            open(path, device="cpu", n_ctx=how.n_ctx, threads=how.threads, max_running=1, tune=False)
        )
        logits = stack.enter_context(closing(ModelLogits(model, path.name)))
        tokenizer = model.tokenizer
        chunks = certifying.spread(
            how.texts, tokenizer.encode, n_ctx=how.n_ctx, n_tokens=how.n_tokens, bos=tokenizer.bos
        )
        found = certifying.run(
            reference,
            examined,
            logits,
            chunks,
            threads=how.threads,
            folder=Path(tempfile.gettempdir()),
            on_progress=how.on_progress,
        )
        engine = model.artifact.engine
    certificate = certifying.certificate(
        reference,
        examined,
        found,
        subject=_subject(path),
        recipe=certifying.recipe_of(text),
        evaluation=how.texts,
        engine=engine,
        calibration=how.calibration,
        features=features,
    )
    return Measured(certificate, tuple(map(str, found.faults)))


def _subject(path: Path) -> str:
    """Of what has no room for a certificate there is no hash, and none is needed."""
    try:
        return subject_at(path)
    except NotVerifiableError:
        return "0" * 64


class Certifier:
    """Has a conversion's output certified before it takes its place; see :class:`converters.Examiner`.

    ``strict``: the largest mean KL divergence, in nats, with which it may.
    """

    def __init__(self, strict: float | None, threads: int | None, on_progress: Progress | None = None) -> None:
        if strict is not None and not (math.isfinite(strict) and strict > 0):
            raise OptionError(f"--strict {strict}: expected a KL divergence in nats above 0", remedy="0.1, perhaps")
        self.certificate: Certificate | None = None
        self._strict, self._threads, self._on_progress = strict, threads, on_progress

    def check(self, plan: "Plan") -> None:
        """OptionError for what no engine here can run; CheckpointError for layers that can't be run one by one."""
        from converters.certifying import context_for  # noqa: PLC0415 - the runtime must not need this half

        if why := _why_not(plan):
            raise OptionError(f"--certify: {why}", remedy=_LEAVE_OUT)
        context_for(plan.checkpoint)
        if not default_texts("evaluation"):
            raise OptionError("--certify: the texts that it measures on are missing", remedy="install edge-llama again")

    def examine(self, plan: "Plan", output: Path) -> None:
        """Measure ``output``, and put the certificate into it. FidelityError if it is wrong, or above ``strict``."""
        how = Measuring.by_default(
            plan.checkpoint,
            threads=self._threads,
            on_progress=self._on_progress,
            calibration=plan.options.evidence,
        )
        measured = measure(plan.checkpoint, output, how)
        if measured.faults or measured.certificate is None:
            raise FidelityError(output.name, measured.faults, remedy="report it; without --certify it is written")
        certificate = measured.certificate
        if self._strict is not None and certificate.numbers.kl > self._strict:
            told = f"a mean KL divergence of {certificate.numbers.kl:.4g} nats, above --strict {self._strict:g}"
            raise FidelityError(output.name, [told], remedy="give a recipe of more bits, or a matrix of --calibration")
        put_at(output, certificate)
        self.certificate = certificate


def _why_not(plan: "Plan") -> str:
    """Why what is planned can't be measured here; empty if it can."""
    options = plan.options
    if plan.is_adapter:
        return "an adapter alone has no logits"
    if options.to == "safetensors":
        return "no engine here runs checkpoints for other programs"
    if options.quant is None:
        return "a vision tower alone has no logits"
    if options.to == "onnx" and options.quant.startswith("a16"):
        return f"{options.quant} is for NPUs, whose engine is not on every machine"
    from edge_llama.backends.llama_cpp import build_probe  # noqa: PLC0415 - asked of conversions to GGUF alone

    if options.to != "onnx" and build_probe.build() is None:
        return "llama-cpp-python, which runs GGUF files, is not installed"
    return ""


def open_reference(checkpoint: str | os.PathLike[str]) -> "Checkpoint":
    """The checkpoint at a path. CheckpointError if it is none."""
    from converters.sources import open_checkpoint  # noqa: PLC0415 - the runtime must not need this half

    return open_checkpoint(Path(checkpoint))
