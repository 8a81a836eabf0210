"""What a certificate says of a converted file, measured: its matrices and layers beside the checkpoint's, its logits.

Whoever has an engine hands in the file's logits, and how a GGUF vocabulary is opened: this package knows none.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from converters.architectures import Weight, for_config
from converters.checkpoint import Checkpoint, Tensor
from converters.evidence import faults, locating, matrices
from converters.evidence.faults import Fault
from converters.evidence.locating import LayerError, Recorder
from converters.evidence.matrices import MatrixError
from converters.evidence.streamed import StreamedTower
from converters.evidence.tower import Tower
from converters.proof import prove_gguf
from converters.sources.gguf import open_file, stored_tensors
from converters.tokenizers.proof import GGUFEncoder
from edge_llama.errors import ArtifactError, CheckpointError
from edge_llama.fidelity.certificate import Certificate, Numbers, Part
from edge_llama.fidelity.comparison import Progress, compare
from edge_llama.fidelity.source import Chunk, LogitSource
from edge_llama.fidelity.text import Text
from edge_llama.fidelity.texts import chunks as chunks_of
from edge_llama.fidelity.texts import fingerprint
from edge_llama.files.gguf import Header, is_gguf
from edge_llama.files.gguf_text import read_gguf_text
from edge_llama.host.regular_files import opened
from quant.recipe import RECIPES

N_TOKENS, N_CTX = 4_096, 512
"""Tokens that a certificate is of, and those of a chunk."""
_PACKAGES = ("edge-llama", "llama-cpp-python", "onnxruntime", "numpy")
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_WEIGHTED = "quantize.imatrix.entries_count"
"""A key of files that were quantized by importance."""
_ENGINE, _ENGINE_SHARE = 0.1, 0.25
"""Nats, and of the divergence from the checkpoint: a file that is read back as it was written, wrongly both times."""
_ONNX = "matrices of an ONNX model are not read back: its logits alone were compared"


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found without running anything."""

    source_sha256: str
    matrices: tuple[MatrixError, ...] = ()
    faults: tuple[Fault, ...] = ()
    rope_error: float = 0.0
    own: Checkpoint | None = None
    """The file as a checkpoint; None where it can't be one."""
    not_located: str = ""

    @property
    def components(self) -> tuple[Part, ...]:
        """What is outside the layers, and routers."""
        if self.not_located:
            return ()
        named = ((faults.part_of(matrix), matrix) for matrix in self.matrices)
        outside = (Part(name, m.error, m.expected) for name, m in named if not name.startswith("layer "))
        return (*(part for part in outside if part.name != faults.ROPE), Part(faults.ROPE, self.rope_error, 0.0))


def examine(
    reference: Checkpoint,
    text: Path,
    *,
    threads: int,
    encode_gguf: GGUFEncoder | None = None,
    on_progress: Progress | None = None,
) -> Examined:
    """Compare the text tower in the file ``text`` with ``reference``: matrices, structure, RoPE, vocabulary.

    Without ``encode_gguf`` vocabularies are compared and not tried. CheckpointError for a checkpoint, ArtifactError for
    a file that is not sound.
    """

    def tell(done: int, total: int) -> None:
        if on_progress:
            on_progress("comparing matrices", done, total)

    architecture = for_config(reference)
    if not is_gguf(text):
        tower = architecture.tower_tensors(reference)
        weights = [Weight(tensor, "", -1) for tensor in tower.values()]
        found = matrices.compare(weights, {}, threads=threads, on_progress=tell)
        return Examined(found.source_sha256, not_located=_ONNX)
    artifact = read_gguf_text(text)
    stored = stored_tensors(artifact)
    found = matrices.compare(
        _with_head(architecture.weights(reference), stored),
        stored,
        is_weighted=is_weighted(artifact.header),
        threads=threads,
        on_progress=tell,
    )
    wrong = list(faults.of_matrices(found.matrices))
    try:
        own = open_file(text)
        wrong += faults.of_structure(reference, own)
        error = faults.rope_error(reference, own)
    except CheckpointError as problem:
        told = Fault(faults.STRUCTURE, problem.message)
        return Examined(found.source_sha256, found.matrices, (*wrong, told))
    wrong += _vocabulary(reference, own, artifact.header.data_offset, encode_gguf)
    return Examined(found.source_sha256, found.matrices, tuple(dict.fromkeys(wrong)), error, own)


def is_weighted(header: Header) -> bool:
    """Whether the file says that it was quantized by importance."""
    return _WEIGHTED in header.fields


def _with_head(weights: Sequence[Weight], stored: Mapping[str, Tensor]) -> Sequence[Weight]:
    """Some programs write the embedding a second time, for a head that is none of its own."""
    by_name = {weight.tensor.name: weight for weight in weights}
    if _HEAD in by_name or _HEAD not in stored:
        return weights
    return (*weights, Weight(by_name[_EMBEDDING].tensor.renamed(_HEAD), "output", -1))


def _vocabulary(
    reference: Checkpoint, own: Checkpoint, header_bytes: int, encode_gguf: GGUFEncoder | None
) -> Iterator[Fault]:
    found = list(faults.of_vocabulary(reference.vocabulary, own.vocabulary))
    yield from found
    if found or encode_gguf is None:
        return
    try:
        with opened(own.path) as file:
            prove_gguf(reference, file.read(header_bytes), encode_gguf)
    except CheckpointError as problem:
        yield Fault(faults.TOKENIZER, problem.message)


@dataclass(frozen=True, slots=True)
class Run:
    """What was found by running both: the logits' numbers, and each layer on the checkpoint's input."""

    numbers: Numbers
    layers: tuple[LayerError, ...] = ()
    engine_kl: float | None = None
    is_weighted: bool = False
    """Whether the file was quantized by importance."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Layers that are further off than rounding explains; the engine, if it makes another model of the weights."""
        found = list(locating.of_layers(self.layers, is_weighted=self.is_weighted))
        if self.engine_kl is not None and self.engine_kl > max(_ENGINE, _ENGINE_SHARE * self.numbers.kl):
            told = f"its logits are {self.engine_kl:.3g} nats from what the file's weights give in float32"
            found.append(Fault(faults.ENGINE, told))
        return tuple(found)


def run(
    reference: Checkpoint,
    examined: Examined,
    model: LogitSource,
    chunks: Sequence[Chunk],
    *,
    threads: int,
    folder: Path,
    on_progress: Progress | None = None,
) -> Run:
    """Run ``reference`` layer by layer beside ``model``, and then each of the file's layers on the same inputs.

    What must lie somewhere meanwhile lies in ``folder``. Errors are those of
    :class:`~converters.evidence.streamed.StreamedTower` and :func:`~edge_llama.fidelity.comparison.compare`.
    """
    hp = for_config(reference).hyperparameters(reference)
    recorder = Recorder(folder, [len(chunk.ids) for chunk in chunks], hp.n_embd, hp.n_layer)
    try:
        with StreamedTower(reference, threads=threads, folder=folder, on_layer=recorder) as tower:
            compared = compare(tower, model, chunks, on_progress)
        layers = _layers(reference, examined, recorder, threads, on_progress)
        own = _of_engine(examined, model, chunks[:1], threads, folder, on_progress)
    finally:
        recorder.close()
    longest = max(len(chunk.ids) for chunk in chunks)
    numbers = Numbers.of(compared.summary(), longest)
    weighted = examined.own is not None and _WEIGHTED in examined.own.metadata
    return Run(numbers, tuple(layers), own, is_weighted=weighted)


def _of_engine(
    examined: Examined,
    model: LogitSource,
    chunks: Sequence[Chunk],
    threads: int,
    folder: Path,
    on_progress: Progress | None,
) -> float | None:
    """How far ``model`` is from the file's own weights, run layer by layer in float32."""
    if examined.own is None:
        return None
    with StreamedTower(examined.own, threads=threads, folder=folder) as tower:
        summary = compare(tower, model, chunks, on_progress).summary()
    return None if summary.kl is None else summary.kl.value


def _layers(
    reference: Checkpoint, examined: Examined, recorder: Recorder, threads: int, on_progress: Progress | None
) -> list[LayerError]:
    def tell(done: int, total: int) -> None:
        if on_progress:
            on_progress("running each layer alone", done, total)

    if examined.own is None:
        return []
    formats = {name: tensor.format for name, tensor in stored_tensors(read_gguf_text(examined.own.path)).items()}
    return locating.measure(reference, examined.own, formats, recorder, threads=threads, on_progress=tell)


def certificate(
    reference: Checkpoint,
    examined: Examined,
    found: Run,
    *,
    subject: str,
    recipe: str,
    evaluation: Sequence[Text],
    engine: str,
    calibration: Sequence[Path] = (),
    features: Sequence[float] = (),
) -> Certificate:
    """The certificate of what was found; ``features`` are the errors of a vision tower's.

    ArtifactError if a file of ``calibration`` can't be read.
    """
    return Certificate(
        subject=subject,
        source=reference.path.absolute().name,
        source_sha256=examined.source_sha256,
        recipe=recipe,
        calibration=tuple(map(_sha256, calibration)),
        evaluation=fingerprint(evaluation),
        engine=engine,
        numbers=found.numbers,
        engine_kl=found.engine_kl,
        layers=tuple(Part(f"layer {each.layer}", each.error, each.expected) for each in found.layers),
        components=examined.components,
        vision=tuple(features),
        not_located=examined.not_located,
        versions=_versions(),
    )


def _sha256(path: Path) -> str:
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy="give it again") from error


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def context_for(reference: Checkpoint) -> int:
    """Tokens of a chunk, of which its context may hold fewer. CheckpointError if its layers can't be run one by one."""
    n_ctx = min(N_CTX, for_config(reference).hyperparameters(reference).n_ctx)
    Tower(reference, threads=1, longest=n_ctx)
    return n_ctx


def spread(
    texts: Sequence[Text],
    encode: Callable[[str], Sequence[int]],
    *,
    n_ctx: int = N_CTX,
    n_tokens: int = N_TOKENS,
    bos: int | None,
) -> list[Chunk]:
    """Chunks of up to ``n_tokens`` tokens in all, the same number of each domain as far as that goes.

    Within a domain, the first of each text before the second of any. DocumentError if no text fills a chunk.
    """
    by_domain: dict[str, list[list[Chunk]]] = {}
    for chunk in chunks_of(texts, encode, n_ctx, bos=bos).chunks:
        of_texts = by_domain.setdefault(chunk.domain, [])
        if not of_texts or of_texts[-1][0].text != chunk.text:
            of_texts.append([])
        of_texts[-1].append(chunk)
    queues = [_in_turn(of_texts) for of_texts in by_domain.values()]
    return _in_turn(queues)[: max(1, n_tokens // n_ctx)]


def _in_turn(queues: Sequence[Sequence[Chunk]]) -> list[Chunk]:
    longest = max(map(len, queues))
    return [queue[at] for at in range(longest) for queue in queues if at < len(queue)]


def recipe_of(text: Path) -> str:
    """How the text tower's file says that it is quantized, with how many tensors of each format."""
    if not is_gguf(text):
        return "onnx"
    artifact = read_gguf_text(text)
    number = artifact.header.get("general.file_type", int, -1)
    name = next((name for name, known in RECIPES.items() if known.ftype == number), f"file type {number}")
    counts = Counter(tensor.format.name for tensor in artifact.tensors)
    return f"{name}: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"
