"""What the source of Meta's folders asks of a family of models: names, shapes, and what they are at Hugging Face."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from converters.architectures.llama_families import Tokens
from converters.checkpoint import Tensor
from converters.metadata.vocabulary import Vocabulary
from edge_llama.files.json_fields import Fields

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


class MetaFamily(Protocol):
    """A kind of params.json, of which an object is one that was read and checked."""

    @property
    def name(self) -> str:
        """As errors call it."""

    @property
    def tokens(self) -> Tokens:
        """What its tokenizer.model doesn't tell, if that is tiktoken's."""

    @property
    def has_sentencepiece(self) -> bool:
        """Whether its tokenizer.model may be sentencepiece's."""

    @property
    def ignored(self) -> re.Pattern[str]:
        """Names of tensors that are left out."""

    @property
    def remedy(self) -> str:
        """What to do about a folder with other tensors."""

    @property
    def fields(self) -> Fields:
        """params.json, for errors."""

    @property
    def dim(self) -> int:
        """Width of the embeddings."""

    @property
    def n_vocab(self) -> int | None:
        """Rows of the embedding; None: as many as there are (Llama 2 says -1)."""

    @property
    def n_ff(self) -> int:
        """Width of the feed-forward layers (of an expert, where there are experts)."""

    @property
    def gate(self) -> str | None:
        """The tensor whose rows in all shards show whether :attr:`n_ff` is right; None where its shape alone does."""

    @property
    def has_integers(self) -> bool:
        """Whether weights may be integers with scales beside them."""

    def split(self, shard: Mapping[str, Tensor], where: Path) -> Mapping[str, Tensor]:
        """A shard's tensors under the names of Meta's published code, each of which is one. CheckpointError."""

    def is_known(self, name: str) -> bool:
        """Whether such a model has a tensor of that name."""

    def shape(self, name: str, n_vocab: int) -> tuple[int, ...]:
        """What a tensor's shape must be, all shards together."""

    def copies(self, name: str, shards: int) -> int:
        """In how many neighbouring shards the same rows lie."""

    def is_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether each shard may have all of it."""

    def hugging_face(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors as Hugging Face has them."""

    def config(self, vocabulary: Vocabulary, *, tied: bool) -> dict[str, Any]:
        """config.json's content."""

    def template(self, vocabulary: Vocabulary) -> str:
        """The chat template's name."""

    def notes(self, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, str]:
        """What params.json left open, by topic; ``stored``: the first shard's tensors before :meth:`split`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before using what is made of it."""
