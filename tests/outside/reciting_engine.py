"""An engine of another package: files that end in .recite, whose model answers everything with the text in it.

It is registered by the entry point ``edge_llama.engines`` alone (``test_outside_engine.py``), and keeps the Protocols
of :mod:`edge_llama.backends.base`; nothing in edge-llama knows of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import (
    AskedDevice,
    AskedSetting,
    CacheSize,
    Choice,
    Engine,
    EngineState,
    Placement,
    Rows,
    Setting,
    TextEmbedder,
    TowerKind,
)
from edge_llama.backends.estimates import Need, Pace
from edge_llama.errors import ArtifactError, EngineError, NotVerifiableError, OptionError
from edge_llama.files.artifact import Row
from edge_llama.files.gguf import TensorInfo
from edge_llama.files.shape import TextShape
from edge_llama.files.text_artifact import TextArtifact
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow, Sampler

END = 256
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}answer: "


@dataclass(frozen=True, slots=True, kw_only=True)
class ReciteArtifact(TextArtifact):
    engine = "reciting"
    text: str
    digest: str

    @property
    def form(self) -> str:
        return "a text to recite"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def shape(self) -> TextShape:
        return TextShape(
            name=self.name,
            engine=self.engine,
            tensors=(),
            weight_bytes=len(self.text),
            n_layer=1,
            n_ctx_train=self.n_ctx_train,
            n_embd=1,
            n_head=1,
            n_head_kv=1,
            head_dim=1,
            n_ff=1,
            n_vocab=self.n_vocab,
            kv_values_per_token=1,
        )

    def identity(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def metadata(self) -> Mapping[str, Any]:
        return {"text": self.text}

    def rows(self) -> Sequence[Row]:
        return [("text", "string", self.text)]

    def verify(self, on_progress: Callable[[int], None]) -> None:
        if not self.digest:
            raise NotVerifiableError(f"{self.path}: carries no hash")
        on_progress(len(self.text))
        if hashlib.sha256(self.text.encode()).hexdigest() != self.digest:
            raise ArtifactError(f"{self.path}: is not as it was written", remedy="write it again")


class Bytes:
    """A token for each byte, and one that ends the answer."""

    n_vocab = END + 1
    control_tokens: Mapping[str, int] = {}
    special_texts: Mapping[str, str] = {}
    bos = None
    frame: tuple[Sequence[int], Sequence[int]] = ((), ())

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        return {}

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        return list(text.encode())

    def encode_parts(self, parts: Sequence[str | int], control: Mapping[str, int] | None = None) -> list[int]:
        return [token for part in parts for token in ([part] if isinstance(part, int) else self.encode(part))]

    def least_tokens(self, text: str) -> int:
        return len(text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    def is_end(self, token: int) -> bool:
        return token == END


class RecitingTower:
    """The likeliest next token is the next byte of the text, as far as it was said after the last "answer: "."""

    n_embd = 1
    n_sequences = 4
    placed = ""

    def __init__(self, artifact: ReciteArtifact, cache: CacheSize, n_batch: int) -> None:
        self._answer = [*artifact.text.encode(), END]
        self.n_ctx, self.n_cells, self.n_batch = cache.n_ctx, cache.n_cells, n_batch
        self.tokenizer = Bytes()
        self.settings: Mapping[str, Any] = {"engine": "reciting 1"}
        self._sequences: list[list[int]] = [[] for _ in range(self.n_sequences)]

    def length(self, sequence: int) -> int:
        return len(self._sequences[sequence])

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        if any(rows.embeddings is not None for rows in batch):
            raise EngineError("no images here")
        for rows in batch:
            self._sequences[rows.sequence] += rows.tokens
        return [LogitsRow(self._logits(self._sequences[rows.sequence])) for rows in batch if rows.needs_logits]

    def _logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        said = bytes(token for token in tokens if token < END).rpartition(b"answer: ")[2]
        logits = np.zeros(END + 1, np.float32)
        logits[self._answer[min(len(said), len(self._answer) - 1)]] = 10
        return logits

    def cut(self, sequence: int, length: int) -> None:
        del self._sequences[sequence][length:]

    def share(self, source: int, target: int, length: int) -> None:
        self._sequences[target][:length] = self._sequences[source][:length]

    def saved_bytes(self, sequence: int) -> int:
        return 4 * len(self._sequences[sequence])

    def save(self, sequence: int) -> NDArray[np.uint8]:
        return np.array(self._sequences[sequence], np.int32).view(np.uint8)

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        if kv.nbytes != 4 * length:
            raise EngineError(f"a cache of {kv.nbytes} bytes")
        self._sequences[sequence] = kv.view(np.int32).tolist()

    def embedder(self, longest: int) -> TextEmbedder:
        raise EngineError("no embeddings here")

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        return NumpySampler(params, history)

    def use_threads(self, count: int) -> None:
        pass

    def abort(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass


class Reciting:
    name = "reciting"
    has_fixed_threads = True
    vision = None

    def recognise(self, path: Path) -> bool:
        return path.suffix == ".recite"

    def tower_kind(self, path: Path) -> TowerKind:
        return "text"

    def bundle(self, path: Path) -> Path | None:
        return None

    def find(self, folder: Path) -> Iterable[Path]:
        return sorted(folder.glob("*.recite"))

    def files(self, path: Path) -> Iterable[Path]:
        return [path]

    def read(self, path: Path) -> ReciteArtifact:
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{path}: not JSON: {error}", remedy="write it again") from error
        return ReciteArtifact(
            path=path,
            name=path.stem,
            architecture="recite",
            chat_template=TEMPLATE,
            n_layer=1,
            n_ctx_train=4096,
            n_vocab=END + 1,
            kv_values_per_token=1,
            text=content["text"],
            digest=content["sha256"],
        )

    def choose(
        self, artifact: ReciteArtifact, asked: AskedSetting, *, placement: Placement | None, tune: bool
    ) -> Choice:
        return Choice(Setting(flash_attention=None, n_batch=asked["n_batch"] or 64), "the only one")

    def place(self, artifact: ReciteArtifact, asked: AskedDevice, cache_bytes: int) -> Placement:
        asked.check_whole(self.name)
        if asked.name not in ("auto", "cpu", "stage"):
            raise OptionError(f"device {asked.name}: not for reciting", remedy="known: cpu, stage")
        return Placement(0, "where it was told", "cpu" if asked.name == "auto" else asked.name)

    def need(self, shape: TextShape, setting: Setting, cache: CacheSize, *, is_reserved: bool = False) -> Need:
        return Need(shape.weight_bytes, shape.kv_values_per_token * cache.n_cells, 0, 0, 1 << 20)

    def pace(self, shape: TextShape, setting: Setting, threads: int) -> Pace | None:
        return Pace(1e-4, 0.0, 1e-4)

    def open(
        self, artifact: ReciteArtifact, *, cache: CacheSize, setting: Setting, placement: Placement, threads: int
    ) -> RecitingTower:
        return RecitingTower(artifact, cache, setting.n_batch)

    def vocabulary(self, artifact: ReciteArtifact) -> Bytes:
        return Bytes()

    def state(self, *, again: bool) -> EngineState:
        return EngineState("Reciting", "texts to recite", "1")


ENGINE: Engine[ReciteArtifact] = Reciting()
