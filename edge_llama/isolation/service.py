"""What the child does for its parent: calls by name, whose arguments and results are JSON's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from edge_llama.backends.adapters import set_from_json
from edge_llama.files.artifact import Pooling
from edge_llama.generation import Generation
from edge_llama.isolation import wire
from edge_llama.isolation.logprob_table import LogprobTable, table_bytes
from edge_llama.isolation.shared_file import view
from edge_llama.media.images import Image
from edge_llama.model import Model
from edge_llama.planning.adapters import AskedAdapters
from edge_llama.prompts.tools import Tools
from edge_llama.runtime.cache_entries import CacheOwner

Owner: TypeAlias = tuple[int, str]
"""The number of an owner, and its tag."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A result with bytes."""

    value: Any
    data: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that is being generated, and where its logprobs go."""

    generation: Generation
    table: LogprobTable | None


class Service:
    """One model, for the parent. Any thread may call it."""

    def __init__(self, model: Model, shared: int) -> None:
        """``shared`` is the descriptor of the file that both processes see."""
        self._model = model
        self._shared = shared
        self._owners: dict[int, CacheOwner] = {}
        sessions = model.sessions
        self._calls: Mapping[str, Callable[..., Any]] = {
            "answer": self._answer,
            "control_tokens_of": model.tokenizer.control_tokens_of,
            "count_tokens": self._count_tokens,
            "embed": self._embed,
            "encode": model.tokenizer.encode,
            "encode_parts": model.tokenizer.encode_parts,
            "forget": sessions.forget,
            "frame": lambda: model.tokenizer.frame,
            "generate": self._generate,
            "least_tokens": model.tokenizer.least_tokens,
            "prefetch": self._prefetch,
            "resume": self._resume,
            "save": self._save,
            "share": lambda owner, other: sessions.share(self._owner(owner), self._owner(other)),
            "stats": lambda: asdict(model.stats()),
            "store": lambda owner: sessions.store(self._owner(owner)),
            "tag": lambda owner, conversation: sessions.tag(self._owner(owner), conversation),
            "tokens_to_prefill": self._tokens_to_prefill,
            "vocabulary": self._vocabulary,
            "why_not_kept": sessions.why_not_kept,
        }

    @property
    def facts(self) -> wire.Facts:
        """What the parent knows of the model without asking."""
        model, tokenizer = self._model, self._model.tokenizer
        return wire.Facts(
            model.context,
            model.choice,
            model.placement,
            model.vision_placement,
            model.threads,
            model.identity,
            dict(tokenizer.control_tokens),
            dict(tokenizer.special_texts),
            tokenizer.bos,
        )

    def call(self, name: str, given: Mapping[str, Any]) -> Any:
        """What a call gives: JSON, a :class:`Blob`, or what :class:`Begun`."""
        return self._calls[name](**given)

    def forget(self, owners: Sequence[int]) -> None:
        """These owners are no more."""
        for owner in owners:
            self._owners.pop(owner, None)

    def _generate(self, prompt: str | Sequence[int], options: Mapping[str, Any], table: Sequence[int] | None) -> Begun:
        generation = self._model.generate(prompt, **wire.options_from_json(options))
        return Begun(generation, self._table(table))

    def _answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Sequence[Any]],
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any],
        owner: Owner | None,
        table: Sequence[int] | None,
    ) -> Begun:
        generation = self._model.answer(
            wire.messages_from_json(messages, self._images(images)),
            owner=None if owner is None else self._owner(owner),
            tools=Tools(tuple(tools)),
            **wire.options_from_json(options),
        )
        return Begun(generation, self._table(table))

    def _count_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Sequence[Any]],
        tools: Sequence[dict[str, Any]],
        template_variables: Mapping[str, Any],
        n_ctx: int | None,
    ) -> int:
        given = wire.messages_from_json(messages, self._images(images))
        return self._model.count_tokens(
            given, tools=Tools(tuple(tools)), template_variables=template_variables, n_ctx=n_ctx
        )

    def _prefetch(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Sequence[Any]],
        tools: Sequence[dict[str, Any]],
        template_variables: Mapping[str, Any],
        owner: Owner,
        adapters: AskedAdapters | None,
    ) -> int:
        given = wire.messages_from_json(messages, self._images(images))
        return self._model.prefetch(
            given,
            self._owner(owner),
            tools=Tools(tuple(tools)),
            template_variables=template_variables,
            adapters=adapters,
        )

    def _tokens_to_prefill(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Sequence[Any]],
        tools: Sequence[dict[str, Any]],
        template_variables: Mapping[str, Any],
        adapters: AskedAdapters | None,
    ) -> int:
        given = wire.messages_from_json(messages, self._images(images))
        return self._model.tokens_to_prefill(
            given, tools=Tools(tuple(tools)), template_variables=template_variables, adapters=adapters
        )

    def _vocabulary(self) -> Blob:
        """Bytes of all tokens: joined, and how many each has; and which tokens end an answer."""
        tokenizer = self._model.tokenizer
        pieces = [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]
        ends = [token for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)]
        return Blob({"lengths": list(map(len, pieces)), "ends": ends}, b"".join(pieces))

    def _embed(self, texts: Sequence[str], pooling: Pooling) -> Blob:
        vectors = self._model.embed(texts, pooling)
        return Blob(vectors.shape, vectors.tobytes())

    def _save(
        self, path: str, messages: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Any]], owner: Owner
    ) -> None:
        given = wire.messages_from_json(messages, self._images(images))
        self._model.sessions.save(path, given, self._owner(owner))

    def _resume(self, path: str, owner: Owner, adapters: Sequence[Sequence[Any]]) -> dict[str, Any]:
        messages, reason = self._model.sessions.resume(path, self._owner(owner), set_from_json(adapters))
        return {"messages": [message.to_json() for message in messages], "reason": reason}

    def _owner(self, given: Owner) -> CacheOwner:
        """The owner of this number. The parent's tag is news where this process took another's place."""
        number, tag = given
        if (owner := self._owners.get(number)) is None:
            new = CacheOwner()
            new.tag = tag
            owner = self._owners.setdefault(number, new)
        return owner

    def _images(self, given: Sequence[Sequence[Any]]) -> list[Image]:
        """The images that the parent put into the file, copied; without their data where it put none."""
        images = []
        for start, size, name, width, height, digest, notes in given:
            data = b"" if start is None else view(self._shared, start, size)[:size]
            images.append(Image(data, name, width, height, digest, tuple(notes)))
        return images

    def _table(self, given: Sequence[int] | None) -> LogprobTable | None:
        if given is None:
            return None
        start, rows, count = given
        return LogprobTable(view(self._shared, start, table_bytes(rows, count)), rows, count)
