"""Documents become parts of a question: whole, or by their passages where that was asked for and they don't fit.

It decides; what it needs of the model it is given as functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from edge_llama.errors import ContextFullError
from edge_llama.media.documents.document import Document
from edge_llama.media.documents.pdf import runs
from edge_llama.prompts.attached import FramedDocument, framed
from edge_llama.prompts.messages import Message
from edge_llama.retrieval.passages import Count, Passage
from edge_llama.retrieval.ranking import Embedder
from edge_llama.retrieval.search import PassageSearch, fitting

MOST = 16
"""Passages that a question gets at most, though more would fit: they are read before the first word of the answer."""
_GAP = "\n[...]\n"
_RETRIEVE = (
    "have the passages found that belong to the question: retrieve=True (--retrieve, /retrieve on); or a larger n_ctx "
    "(--n-ctx)"
)
_NO_ROOM = "begin anew, or open the model with a larger n_ctx (--n-ctx)"


class Attaching:
    """Puts documents before questions."""

    def __init__(
        self, n_ctx: int, prompt_tokens: Callable[[Message], int], count: Count, max_tokens: int | None
    ) -> None:
        """``prompt_tokens`` are those of a conversation with this question at its end, ``count`` those of a text.

        The former may raise ContextFullError for what is clearly too much. ``max_tokens`` are the answer's, if limited.
        """
        self.n_ctx = n_ctx
        self._prompt_tokens = prompt_tokens
        self._count = count
        self._answer_room = min(max_tokens or n_ctx, n_ctx // 4)

    def whole(self, question: Message, documents: Sequence[Document]) -> Message:
        """The question with all of the documents before it. ContextFullError if they don't fit, with both numbers."""
        parts = [framed(document) for document in documents]
        if (excess := self._excess(_with(question, parts), 1)) is not None:
            raise self._refusal(question, documents, excess)
        return self._counted(question, parts)

    def retrieved(
        self, question: Message, documents: Sequence[Document], search: PassageSearch, embedder: Embedder | None
    ) -> tuple[Message, tuple[Passage, ...]]:
        """The same if they fit with room for an answer, a quarter of the context; else with the nearest passages.

        Those in the documents' order. ContextFullError if not even the nearest one fits.
        """
        documents = list({document.sha256: document for document in documents}.values())
        if self._excess(_with(question, [framed(each) for each in documents]), self._answer_room) is None:
            return self.whole(question, documents), ()
        ranked = search.nearest(question.own_text, documents, self._count, embedder)

        def fits(passages: Sequence[Passage]) -> bool:
            parts = _parts(passages, documents)
            return self._excess(_with(question, parts), self._answer_room) is None

        used = fitting(ranked, fits, MOST)
        if not used:
            raise self._no_room(question, _parts(ranked[:1], documents), ranked[0])
        order = {document.sha256: at for at, document in enumerate(documents)}
        in_order = sorted(used, key=lambda each: (order[each.sha256], each.number))
        return self._counted(question, _parts(used, documents)), tuple(in_order)

    def _counted(self, question: Message, parts: Sequence[FramedDocument]) -> Message:
        """The question with these before it, each with what it adds to the prompt."""
        totals = [self._prompt_tokens(_with(question, parts[:count])) for count in range(len(parts) + 1)]
        each = zip(parts, pairwise(totals), strict=True)
        return _with(question, [replace(part, tokens=after - before) for part, (before, after) in each])

    def _no_room(self, question: Message, parts: Sequence[FramedDocument], passage: Passage) -> ContextFullError:
        before = self._prompt_tokens(question)
        needed = self._count(parts[0].text)
        room = max(0, self.n_ctx - self._answer_room - before)
        return ContextFullError(needed, self.n_ctx, room=room, text=f"the nearest passage ({passage})", remedy=_NO_ROOM)

    def _excess(self, question: Message, kept: int) -> "ContextFullError | int | None":
        """None if the question leaves ``kept`` tokens; else how many it takes, or what was raised without counting."""
        try:
            needed = self._prompt_tokens(question)
        except ContextFullError as error:
            return error
        return None if needed + kept <= self.n_ctx else needed

    def _refusal(
        self, question: Message, documents: Sequence[Document], excess: ContextFullError | int
    ) -> ContextFullError:
        before = self._prompt_tokens(question)
        is_bound = isinstance(excess, ContextFullError)
        needed = excess.needed if isinstance(excess, ContextFullError) else excess - before
        names = ", ".join(document.name for document in documents)
        room = max(0, self.n_ctx - 1 - before)
        return ContextFullError(needed, self.n_ctx, is_bound=is_bound, room=room, text=names, remedy=_RETRIEVE)


def _with(question: Message, documents: Sequence[FramedDocument]) -> Message:
    return Message("user", [*documents, *question.parts])


def _parts(passages: Sequence[Passage], documents: Sequence[Document]) -> list[FramedDocument]:
    """A document for each that has some of the passages, with these in its order and marks where text is left out."""
    found = []
    for document in documents:
        own = sorted((each for each in passages if each.sha256 == document.sha256), key=lambda each: each.number)
        if own:
            numbers = runs([passage.number for passage in own])
            part = f"passage{'s' * (len(own) > 1)} {numbers} of {own[0].count:,}"
            found.append(framed(document, _excerpt(own, document), part))
    return found


def _excerpt(passages: Sequence[Passage], document: Document) -> str:
    """The passages without what two in a row have in common; of a table with its first line: it names the columns."""
    in_a_row = [[each for _, each in run] for _, run in groupby(enumerate(passages), lambda at: at[1].number - at[0])]
    texts = [document.text[run[0].start : run[-1].stop] for run in in_a_row]
    if document.kind == "CSV" and passages[0].start > 0:
        texts.insert(0, document.text.partition("\n")[0])
    begins, ends = passages[0].number == 1, passages[-1].number == passages[-1].count
    between = _GAP.join(texts)
    return f"{'' if begins or document.kind == 'CSV' else _GAP.lstrip()}{between}{'' if ends else _GAP.rstrip()}"
