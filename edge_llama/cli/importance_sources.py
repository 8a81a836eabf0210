"""What importance is measured of: a GGUF that llama.cpp runs, or a checkpoint that runs layer by layer."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.errors import OptionError
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.files.identity import sampled_sha256
from edge_llama.files.tokenizer_folder import read_tokenizer_folder
from edge_llama.planning.options import OpenOptions
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.hf_tokenizer import HFTokenizer
from edge_llama.prompts.model_template import ModelTemplate, template_of
from edge_llama.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edge_llama.backends.llama_cpp.text import LlamaCppTower

Sums = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Of a matrix: sums of squares (n_experts, columns), and the tokens (n_experts,) that they are over."""
Chunks = Sequence[NDArray[np.int64]]
_FEW_ROWS = 16
"""Of the engine's own batches, which measuring has no use for."""
_TOGETHER = 1 << 14
"""Tokens that go through a checkpoint's layers together: they outweigh reading its weights, and lie on the disk."""


class Source(Protocol):
    """A model whose matrices' inputs are added up."""

    identity: str
    """Which model it is: 64 hexadecimal digits."""
    tokenizer: Tokenizer
    together: int
    """Chunks that are read at once: after them it may be stopped."""

    def template(self) -> ChatTemplate:
        """TemplateError if it has none."""

    def begin(self, sums: Mapping[str, Sums]) -> None:
        """Go on from ``sums``, by the matrices' names in GGUF."""

    def read(self, chunks: Chunks, on_share: Callable[[float], None]) -> None:
        """Add what comes of ``chunks``; ``on_share`` is told how much of them is done. After an error none of it."""

    def sums(self) -> Mapping[str, Sums]:
        """All of it, since the beginning."""

    def close(self) -> None:
        """Give back memory, and what lies on the disk meanwhile."""


class GGUFSource:
    """Keeps :class:`Source`: by llama.cpp, a chunk at a time."""

    def __init__(self, path: Path, output: Path, n_ctx: int, threads: int, opening: OpenOptions) -> None:
        """OptionError for a model by which llama.cpp writes no text; OutputError if ``output`` is a file of it."""
        from converters.output import check_inputs  # noqa: PLC0415 - the runtime's verbs must not need this half

        artifact = open_artifact(locate(path))
        if not isinstance(artifact, GGUFArtifact) or artifact.is_encoder:
            what = "an embedding model" if artifact.engine == "llama.cpp" else f"a model for {artifact.engine}"
            raise OptionError(
                f"{artifact.path}: is {what}; importance is measured of a .gguf that writes text, or of a checkpoint",
                remedy="give one of these",
            )
        check_inputs(output, [], artifact.files)
        asked: OpenOptions = {"n_ctx": n_ctx, "max_running": 1, "n_batch": _FEW_ROWS, "tune": False}
        self._artifact, self.identity, self.together = artifact, artifact.identity(), 1
        self._tower = cast("LlamaCppTower", plan_engine(artifact, {**asked, **opening}).open(threads))
        self.tokenizer: Tokenizer = self._tower.tokenizer
        self._collector = self._tower.importance(n_ctx)

    def template(self) -> ChatTemplate:
        """The file's default one."""
        return template_of(self._artifact, None).compiled(self.tokenizer)

    def begin(self, sums: Mapping[str, Sums]) -> None:
        """See the Protocol."""
        self._collector.sums = dict(sums)

    def read(self, chunks: Chunks, on_share: Callable[[float], None]) -> None:
        """See the Protocol."""
        for chunk in chunks:
            self._collector.read(chunk.tolist())
        on_share(1.0)

    def sums(self) -> Mapping[str, Sums]:
        """See the Protocol."""
        return self._collector.sums

    def close(self) -> None:
        """Free the model."""
        self._collector.close()
        self._tower.close()


class CheckpointSource:
    """Keeps :class:`Source`: layer by layer, as many chunks together as outweigh reading its weights."""

    def __init__(self, path: Path, output: Path, n_ctx: int, threads: int) -> None:
        """CheckpointError for one that can't be run so; OutputError if ``output`` is one of its files."""
        from converters.evidence.importance import Squares  # noqa: PLC0415 - likewise
        from converters.output import check_inputs  # noqa: PLC0415
        from converters.sources import open_checkpoint  # noqa: PLC0415
        from converters.transforms.chat_templates import with_template  # noqa: PLC0415

        self._checkpoint = with_template(open_checkpoint(path), None)
        check_inputs(output, [self._checkpoint.path], self._checkpoint.files)
        self.identity = _identity(self._checkpoint.files)
        self.together = max(1, _TOGETHER // n_ctx)
        self.tokenizer: Tokenizer = self._tokenizer()
        self._squares, self._threads = Squares(self._checkpoint), threads
        self._folder = output.absolute().parent

    def _tokenizer(self) -> HFTokenizer:
        """The one that is written for it, which a conversion's proof holds equal to its own."""
        from converters.tokenizers.writer import write_files  # noqa: PLC0415 - likewise

        with tempfile.TemporaryDirectory(prefix="edge-llama-tokenizer-") as folder:
            files: Mapping[str, Any] = write_files(self._checkpoint.vocabulary, self._checkpoint.path)
            for name, content in files.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                Path(folder, name).write_bytes(data)
            return HFTokenizer(read_tokenizer_folder(Path(folder)))

    def template(self) -> ChatTemplate:
        """The checkpoint's default one, or its family's."""
        templates = self._checkpoint.vocabulary.chat_templates
        source, where = templates.get("default"), str(self._checkpoint.path)
        return ModelTemplate(source, where, names=tuple(templates)).compiled(self.tokenizer)

    def begin(self, sums: Mapping[str, Sums]) -> None:
        """See the Protocol."""
        self._squares.sums = dict(sums)

    def read(self, chunks: Chunks, on_share: Callable[[float], None]) -> None:
        """See the Protocol. Hidden states lie beside the output meanwhile."""
        from converters.evidence.importance import add_chunks  # noqa: PLC0415 - likewise

        add_chunks(
            self._squares,
            self._checkpoint,
            chunks,
            threads=self._threads,
            folder=self._folder,
            on_progress=lambda done, total: on_share(done / total),
        )

    def sums(self) -> Mapping[str, Sums]:
        """See the Protocol."""
        return self._squares.sums

    def close(self) -> None:
        """Nothing is left open between two reads."""


def _identity(files: Sequence[Path]) -> str:
    """Of names, sizes and samples of a checkpoint's files, those that are there."""
    digest = hashlib.sha256()
    for file in sorted({file for file in files if file.is_file()}, key=lambda file: file.name):
        digest.update(f"{file.name} {sampled_sha256(file)}\n".encode())
    return digest.hexdigest()
