"""Documents in a chat and before a prompt: what is told of them, and how passages of them are found."""

from collections.abc import Callable, Sequence
from types import TracebackType

from edge_llama.chat import Chat
from edge_llama.cli.terminal.console import note
from edge_llama.errors import ContextFullError
from edge_llama.media.documents.document import Document
from edge_llama.model import Model


class Retrieval:
    """Whether passages are found where documents don't fit, and the model that embeds them, opened when needed."""

    def __init__(self, open_model: Callable[[str], Model], name: str | None, *, is_on: bool) -> None:
        """``name`` None: passages are found by words alone."""
        self.is_on = is_on
        self._open = open_model
        self._name = name
        self._model: Model | None = None

    def embedder(self, documents: Sequence[Document]) -> Model | None:
        """The model that embeds passages of these documents, if one shall. It raises what opening a model raises."""
        if not self.is_on or not documents or self._name is None:
            return None
        if self._model is None:
            self._model = self._open(self._name)
        return self._model

    def __enter__(self) -> "Retrieval":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the model, if it is open."""
        if self._model:
            self._model.close()


def tell_cost(chat: Chat, documents: Sequence[Document], *, quiet: bool) -> None:
    """What the documents take of the context, before they are sent; nothing where they don't fit: sending says that."""
    for document in documents:
        tell_notes(document)
    try:
        tokens = chat.file_tokens(documents)
    except ContextFullError:
        return
    for document, count in zip(documents, tokens, strict=True):
        note(f"{document.name}: {document.kind}, {count:,} tokens", quiet=quiet)


def tell_notes(document: Document) -> None:
    """Told also with --quiet, as all that the model does not get, or gets by a guess."""
    for told in document.notes:
        note(f"[{document.name}: {told}]")


def tell_passages(chat: Chat, documents: Sequence[Document]) -> None:
    """Which passages of these stand in the last message, if they don't stand there whole. Told also with --quiet."""
    for document in documents if chat.passages else ():
        if own := [passage for passage in chat.passages if passage.sha256 == document.sha256]:
            lines = ", ".join(passage.lines for passage in own)
            note(f"[{document.name}: {len(own):,} of {own[0].count:,} passages are used: {lines}]")
        else:
            note(f"[{document.name}: none of its passages is used]")


def attach(chat: Chat, waiting: list[Document], document: Document, *, is_searched: bool) -> None:
    """Have a document wait for the next message. ContextFullError if it has no room there beside those that wait."""
    try:
        size = f"{chat.file_tokens([*waiting, document])[-1]:,} tokens"
    except ContextFullError as error:
        if not is_searched:
            raise
        size = f"more than there is room for ({error.room:,} tokens): passages of it will be found"
    waiting.append(document)
    tell_notes(document)
    note(f"with the next message: {document.name}, {document.kind}, {size}")
