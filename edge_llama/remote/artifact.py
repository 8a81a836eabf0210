"""What is known of a model that a server runs, in place of a file's header."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edge_llama.backends.token_stream import TokenStream
from edge_llama.errors import NotVerifiableError
from edge_llama.files.artifact import Row
from edge_llama.files.gguf import TensorInfo
from edge_llama.files.shape import TextShape
from edge_llama.files.text_artifact import TextArtifact
from edge_llama.remote.vocabulary import OpenVocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteArtifact(TextArtifact):
    """A text tower without weights; ``path`` is where its tokenizer and its templates lie."""

    engine: ClassVar[str] = "remote"

    url: str
    served_by: str
    digest: str

    @property
    def form(self) -> str:
        """What serves it, and where."""
        return f"{self.served_by} at {self.url}"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """None are here."""
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        """None are here."""
        return ()

    @property
    def shape(self) -> TextShape:
        """What is known of it: nothing lies in this machine's memory."""
        return TextShape(
            name=self.name,
            engine=self.engine,
            tensors=(),
            weight_bytes=0,
            n_layer=0,
            n_ctx_train=self.n_ctx_train,
            n_embd=0,
            n_head=0,
            n_head_kv=0,
            head_dim=0,
            n_ff=0,
            n_vocab=self.n_vocab,
            kv_values_per_token=0,
        )

    @property
    def takes_embeddings(self) -> bool:
        """Token ids alone go there."""
        return False

    def identity(self) -> str:
        """By the server's address, the model's name there and its vocabulary: weights can't be asked for."""
        return hashlib.sha256(f"{self.url} {self.name} {self.digest}".encode()).hexdigest()

    def metadata(self) -> Mapping[str, Any]:
        """What the server says."""
        return {"url": self.url, "served_by": self.served_by, "n_ctx": self.n_ctx_train}

    def rows(self) -> Sequence[Row]:
        """The same for people."""
        return [(key, type(value).__name__, str(value)) for key, value in self.metadata().items()]

    def verify(self, on_progress: Callable[[int], None]) -> None:  # noqa: ARG002 - there is nothing to check
        """NotVerifiableError: its weights are elsewhere."""
        raise NotVerifiableError(f"{self.url}: the model's weights are on the server", remedy="verify its file there")


def described(stream: TokenStream, vocabulary: OpenVocabulary) -> RemoteArtifact:
    """The model behind ``stream``."""
    return RemoteArtifact(
        path=vocabulary.path,
        name=stream.model,
        architecture="",
        chat_template=vocabulary.chat_template,
        named_templates=vocabulary.named_templates,
        n_layer=0,
        n_ctx_train=stream.n_ctx,
        n_vocab=vocabulary.tokenizer.n_vocab,
        kv_values_per_token=0,
        sampling=vocabulary.sampling,
        warnings=vocabulary.warnings,
        url=stream.url,
        served_by=stream.engine,
        digest=vocabulary.digest,
    )
