"""A model whose engine is in a process of its own: the same calls, which a child does.

Files are read here too, in Python: ``artifact`` and ``vision`` are the same objects as of a model in this process. What
needs an engine, its tokenizer among it, is asked of the child; no engine's package is imported here.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet, set_to_json
from edge_llama.backends.base import VisionTower
from edge_llama.backends.local_models import found
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.chat import Sessions
from edge_llama.errors import EngineError
from edge_llama.files.artifact import Pooling, VisionArtifact
from edge_llama.generation import Answer, AnswerOptions, Generation, RequestOptions
from edge_llama.isolation import wire
from edge_llama.isolation.tokenizer import RemoteTokenizer
from edge_llama.isolation.worker import Worker
from edge_llama.media.images import Image  # noqa: TC001 - as everywhere here
from edge_llama.model import Model, are_tokens, path_of, sees_no_images, vision_of
from edge_llama.planning.adapters import AskedAdapters, adapters_of
from edge_llama.planning.options import OpenOptions, check_place, checked
from edge_llama.prompts.messages import Message, as_json, check_messages, check_text
from edge_llama.prompts.model_template import template_of
from edge_llama.prompts.tools import Tool, Tools, tools_of
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.encoders import ImageEncoder
from edge_llama.runtime.session_file import checked_path
from edge_llama.runtime.stats import Stats


class IsolatedModel(Model):
    """See :func:`edge_llama.open` with ``isolate=True``."""

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Unpack[OpenOptions]) -> None:
        """See :func:`edge_llama.open`."""
        given = checked(options)
        check_place(given, is_remote=False)
        path = found(path_of(model))
        on_progress = given.pop("on_progress", None)
        self._worker = Worker(str(path.absolute()), _absolute(given), on_progress)
        try:
            self._describe(path, given)
        except BaseException:
            self._worker.close()
            raise
        self._finalizer = weakref.finalize(self, self._worker.close)

    def _describe(self, path: Path, given: OpenOptions) -> None:
        """Read the files while the child opens them, and take over what it decides."""
        self.artifact = open_artifact(locate(str(path)))
        vision = vision_of(path, given)
        self._template = template_of(self.artifact, given.get("chat_template"))
        facts = self._worker.opened()
        self.context, self.choice, self.placement = facts.context, facts.choice, facts.placement
        self.vision_placement, self.threads, self.identity = facts.vision_placement, facts.threads, facts.identity
        self.tokenizer = RemoteTokenizer(self._worker, self.artifact.n_vocab, facts)
        self._images = _image_ids(vision, facts, given.get("max_tiles"))
        self.adapters = adapters_of(self.artifact, given)
        self._is_deterministic = given.get("deterministic", False)

    @property
    def vision(self) -> VisionArtifact | None:
        """The vision tower's file; None if the model sees no images."""
        return self._images.artifact if self._images else None

    @cached_property
    def sessions(self) -> Sessions:
        """What the engine holds of the model's chats."""
        return _RemoteSessions(self._worker)

    def require_vision(self) -> ImageEncoder:
        """What says which ids stand for images; InputError if the model sees none. It embeds nothing here."""
        if self._images is None:
            raise sees_no_images(self.artifact)
        return self._images

    def generate(self, prompt: str | Sequence[int], **options: Unpack[RequestOptions]) -> Generation:
        """See :meth:`edge_llama.Model.generate`."""
        if not are_tokens(prompt):
            check_text(prompt, "the prompt")
        given = list(prompt) if are_tokens(prompt) else prompt
        return self._worker.begin("generate", options, prompt=given, keep_alive=self)

    def answer(
        self,
        messages: Sequence[Message],
        *,
        on_finish: Callable[[Answer], None] | None = None,
        owner: CacheOwner | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """See :meth:`edge_llama.Model.answer`. OptionError for options that can't leave this process."""
        tools = tools_of(options.pop("tools", None))
        images: list[Image] = []
        return self._worker.begin(
            "answer",
            options,
            messages=wire.messages_to_json(check_messages(messages), images),
            images=images,
            tools=tools.schemas,
            owner=None if owner is None else self._worker.owner(owner),
            on_finish=on_finish,
            keep_alive=self,
        )

    def _vectors(self, texts: Sequence[str], pooling: Pooling) -> NDArray[np.float32]:
        shape, data = self._worker.call_with_bytes("embed", texts=list(texts), pooling=pooling)
        return np.frombuffer(data, np.float32).reshape(shape).copy()

    def count_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        n_ctx: int | None = None,
    ) -> int:
        """See :meth:`edge_llama.Model.count_tokens`."""
        given = _prompt(messages, tools, template_variables)
        count: int = self._worker.call("count_tokens", **given, n_ctx=n_ctx)
        return count

    def prefetch(
        self,
        messages: Sequence[Message],
        owner: CacheOwner,
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """See :meth:`edge_llama.Model.prefetch`."""
        given = _prompt(messages, tools, template_variables)
        asked = as_json(adapters, "adapters")
        count: int = self._worker.call("prefetch", **given, owner=self._worker.owner(owner), adapters=asked)
        return count

    def tokens_to_prefill(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """See :meth:`edge_llama.Model.tokens_to_prefill`."""
        given = _prompt(messages, tools, template_variables)
        count: int = self._worker.call("tokens_to_prefill", **given, adapters=as_json(adapters, "adapters"))
        return count

    def stats(self) -> Stats:
        """See :meth:`edge_llama.Model.stats`."""
        return Stats(**self._worker.call("stats"))

    @property
    def has_died(self) -> bool:
        """Whether that process has ended by itself: the next call starts another."""
        return self._worker.has_died

    @property
    def worker_pid(self) -> int:
        """The id of the process that the model works in now, or did when it died."""
        return self._worker.pid


class _RemoteSessions:
    """See :class:`edge_llama.runtime.chat_sessions.ChatSessions`, whose files the child reads and writes."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        self._worker.call("share", owner=self._worker.owner(owner), other=self._worker.owner(other))

    def tag(self, owner: CacheOwner, conversation: str) -> None:
        owner.tag = conversation  # for a child that takes the place of this one
        self._worker.call("tag", owner=self._worker.owner(owner), conversation=conversation)

    def forget(self, conversation: str) -> None:
        self._worker.call("forget", conversation=conversation)

    def store(self, owner: CacheOwner) -> None:
        self._worker.call("store", owner=self._worker.owner(owner))

    def why_not_kept(self, conversation: str) -> str | None:
        found: str | None = self._worker.call("why_not_kept", conversation=conversation)
        return found

    def save(self, path: str | os.PathLike[str], messages: Sequence[Message], owner: CacheOwner) -> None:
        target = checked_path(path).absolute()  # the host may have changed its working directory
        images: list[Image] = []
        given = wire.messages_to_json(check_messages(messages), images)
        self._worker.call("save", images, path=target, messages=given, owner=self._worker.owner(owner))

    def resume(
        self, path: str | os.PathLike[str], owner: CacheOwner, adapters: AdapterSet = ()
    ) -> tuple[tuple[Message, ...], str | None]:
        source, used = checked_path(path).absolute(), set_to_json(adapters)
        found = self._worker.call("resume", path=source, owner=self._worker.owner(owner), adapters=used)
        return tuple(map(Message.from_json, found["messages"])), found["reason"]


def _prompt(
    messages: Sequence[Message], tools: Iterable[Tool] | Tools | None, variables: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a conversation is rendered from. Which ids stand for images their sizes and hashes say: no data is sent."""
    images: list[Image] = []
    return {
        "messages": wire.messages_to_json(check_messages(messages), images),
        "images": [replace(image, data=b"") for image in images],
        "tools": tools_of(tools).schemas,
        "template_variables": as_json(dict(variables or {}), "template_variables"),
    }


def _absolute(options: OpenOptions) -> Mapping[str, Any]:
    """The options with paths that are good in every child, wherever the host's working directory is by then."""
    paths = {"vision": options.get("vision"), "cache_dir": options.get("cache_dir")}
    found = {name: Path(str(path_of(path))).absolute() for name, path in paths.items() if path is not None}
    given = options.get("adapters")
    adapters = {name: str(Path(path).absolute()) for name, path in given.items()} if isinstance(given, Mapping) else {}
    changed: dict[str, Any] = {name: str(path) for name, path in found.items()}
    return {**options, **changed, **({"adapters": adapters} if adapters else {})}


def _image_ids(vision: VisionArtifact | None, facts: wire.Facts, max_tiles: int | None) -> ImageEncoder | None:
    """What says which ids stand for images."""
    return ImageEncoder(vision, _open_no_tower, facts.control_tokens, max_tiles) if vision else None


def _open_no_tower() -> VisionTower:
    raise EngineError("the vision tower is in the model's own process")
