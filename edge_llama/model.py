"""A model that is open: the runtime's front door."""

import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex, TypeGuard, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import load_progress
from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import AskedDevice, Placement, TextTower
from edge_llama.backends.device_names import check_provider_options
from edge_llama.backends.local_models import found
from edge_llama.backends.registry import open_artifact, vision_engine_of
from edge_llama.backends.towers import locate, read_bundle, read_vision
from edge_llama.chat import Chat, ChatOptions, Sessions
from edge_llama.errors import ArtifactError, CopyError, InputError, OptionError, check_known
from edge_llama.files.artifact import Artifact, Pooling, VisionArtifact
from edge_llama.files.onnx_text import IMAGE_FEATURES
from edge_llama.generation import Answer, AnswerOptions, AnswerParts, Generation, RequestOptions, generate
from edge_llama.host import devices
from edge_llama.media.images import Image
from edge_llama.planning.adapters import Adapters, AskedAdapters, adapters_of, add_to, chosen, nbytes_of
from edge_llama.planning.options import OpenOptions, check_place, checked
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.messages import Message, check_messages, check_text, images_of
from edge_llama.prompts.model_template import template_of
from edge_llama.prompts.tokenizer import check_length
from edge_llama.prompts.tool_choice import NONE, REQUIRED, call_grammar, called_tools, decides
from edge_llama.prompts.tools import Tool, Tools, tools_of, trained_tools
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.chat_sessions import ChatSessions
from edge_llama.runtime.disk_cache import DiskCache, needed_settings
from edge_llama.runtime.embeddings import Embeddings, PoolingChoice, check_texts, choose_pooling, text_tokens
from edge_llama.runtime.encoders import ImageEmbeddings, ImageEncoder, check_room
from edge_llama.runtime.scheduler import MAX_QUEUED, Scheduler
from edge_llama.runtime.stats import Stats
from edge_llama.runtime.thread_pacer import Pace
from edge_llama.sampling.params import SamplingParams, check_whole, recommended

_log = logging.getLogger("edge_llama")


class Model:
    """A model file, loaded. Threads and tasks may share it; many are served at once.

    Examples:
        >>> with edge_llama.open() as model:  # what `edge_llama.open` gives
        ...     print(model.generate("The capital of Japan is", temperature=0, max_tokens=20).result().text)
        ...     print(model.embed(["one text", "another"]).shape)  # (n, n_embd)
        ...     question = [edge_llama.Message("user", "Say 5.")]
        ...     print(model.count_tokens(question) < model.n_ctx, model.answer(question, temperature=0).result().text)
         Tokyo.
        (2, 128)
        True 5
        >>> model.generate("Once")  # closed
        Traceback (most recent call last):
        edge_llama.errors.EngineError: ...
    """

    _has_told_pooling = False

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Unpack[OpenOptions]) -> None:
        """See :func:`edge_llama.open`."""
        given = checked(options)
        check_place(given, is_remote=False)
        self.artifact = artifact = open_artifact(locate(path_of(model)))
        """What its file says: ``name``, ``architecture``, ``engine``, ``n_vocab``, ..."""
        vision = vision_of(model, given)
        self._template = template_of(artifact, given.get("chat_template"))
        self.vision_placement = _place_vision(artifact, vision, given)
        """Where the vision tower runs; None if the model has none."""
        self.adapters: Adapters = adapters_of(artifact, given)
        """Those that answers may ask for, by name."""
        self._is_deterministic = given.get("deterministic", False)
        plan = plan_engine(artifact, given, (vision.nbytes if vision else 0) + nbytes_of(self.adapters))
        _check_told(given, plan.placement, self.vision_placement)
        self.context = plan.context
        """How much context it has, why, and the bytes of its KV cache; as text for people."""
        self.choice = plan.choice
        """The engine's settings (batch, flash attention, the KV cache's format), and why; as text for people."""
        threads = given.get("threads")
        if plan.engine.has_fixed_threads:
            threads = threads or devices.cpu_threads()
        self.threads = threads
        """How many threads every token takes; None: as many as are free then."""
        with load_progress.told_to(given.get("on_progress")):
            tower = plan.open(threads or devices.cpu_threads())
        self.placement = replace(plan.placement, found=tower.placed)
        """Where the text tower runs, and why; as text for people."""
        self.tokenizer = tower.tokenizer
        """``encode`` a text to ids, ``piece`` an id to bytes; ``n_vocab``."""
        try:
            _check_cells(tower, given.get("kv_cells"))
            add_to(tower, self.adapters)
            encoder = self._encoder(vision, tower, given.get("max_tiles"))
            self.identity = artifact.identity()
            """A hash that tells its file from others."""
            self._disk = self._opened_disk(tower, encoder, given)
        except BaseException:
            tower.close()
            raise
        # While a GPU works its thread sleeps: that says nothing about others.
        pace = None if threads or plan.placement.gpu_layers else Pace(devices.cpu_threads())
        cache_bytes, max_queued = given.get("cache_bytes"), given.get("max_queued")
        limit = self.context.bytes if cache_bytes is None else cache_bytes
        self._engine = Scheduler(
            tower,
            pace.begin if pace else lambda: threads or devices.free_threads(),
            lambda used: min(limit, used + devices.available_memory() // 2),
            pace,
            encoder,
            max_running=plan.max_running,
            max_queued=MAX_QUEUED if max_queued is None else max_queued,
            is_deterministic=self._is_deterministic,
            disk=self._disk,
        )
        self._embeddings = Embeddings(self._engine)
        self._finalizer = weakref.finalize(self, self._engine.close)
        for text in artifact.warnings:
            _log.warning("%s: %s", artifact.path, text)
        _log.info("%s: %s; %s; %s", artifact.path, self.context, self.choice, self.placement)

    def _encoder(self, vision: VisionArtifact | None, tower: TextTower, max_tiles: int | None) -> ImageEncoder | None:
        """What embeds images by ``vision``, opened with the first of them. ArtifactError if it is another model's."""
        if vision is None:
            return None
        if vision.spec.n_embd != tower.n_embd:
            raise ArtifactError(
                f"{vision.path}: its embeddings are {vision.spec.n_embd:,} wide, the text model's {tower.n_embd:,}",
                remedy="the towers are of different models: open those that belong together",
            )
        placement, threads = self.vision_placement, self.threads or devices.cpu_threads()
        assert placement  # noqa: S101 - there is a tower
        opened = partial(vision_engine_of(vision).open, vision, placement, threads=threads)
        return ImageEncoder(vision, opened, tower.tokenizer.control_tokens, max_tiles)

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return self.context.n_ctx

    @property
    def location(self) -> str:
        """Where it lies: the file's whole path, or a server's URL."""
        return str(self.artifact.path.resolve())

    def _opened_disk(self, tower: TextTower, encoder: ImageEncoder | None, given: OpenOptions) -> DiskCache | None:
        """Where ``cache_dir`` says; None if it says nothing."""
        folder = given.get("cache_dir")
        if folder is None:
            return None
        needed = needed_settings(tower, self.artifact)
        settings = {**needed, **self._settings(tower, encoder)}
        keeps_untagged = not given.get("cache_tagged_only", False)
        name, n_ctx = self.artifact.name, tower.n_ctx
        return DiskCache(Path(folder), name, self.identity, settings, needed, n_ctx, keeps_untagged=keeps_untagged)

    def _settings(self, tower: TextTower, encoder: ImageEncoder | None) -> dict[str, Any]:
        """With which options the model shall be opened again, beside the tower's own."""
        if encoder is None or self.vision_placement is None:
            return {"n_ctx": tower.n_ctx}
        return {"n_ctx": tower.n_ctx, "vision_device": self.vision_placement.device, "max_tiles": encoder.max_tiles}

    @property
    def vision(self) -> VisionArtifact | None:
        """The vision tower's file; None if the model sees no images."""
        return self._engine.encoder.artifact if self._engine.encoder else None

    @cached_property
    def sessions(self) -> Sessions:
        """What the engine holds of the model's chats."""
        settings = self._settings(self._engine.tower, self._engine.encoder)
        return ChatSessions(self._engine, self.artifact, self.identity, settings, self._disk)

    def require_vision(self) -> ImageEncoder:
        """What embeds images; InputError if the model sees none."""
        if self._engine.encoder is None:
            raise sees_no_images(self.artifact)
        return self._engine.encoder

    def image_tokens(self, image: Image) -> int:
        """How many tokens of context an image takes. InputError if the model sees none."""
        return len(self.require_vision().ids(image))

    def chat(self, *, system: str | None = None, **options: Unpack[ChatOptions]) -> Chat:
        """A new conversation; ``options`` are :class:`edge_llama.ChatOptions`, among them :meth:`answer`'s.

        Raises TemplateError if the model has no chat template.
        """
        self._check_writes()
        _ = self.template
        return Chat(self, system=system, **options)

    def load_chat(self, path: str | os.PathLike[str], **options: Unpack[ChatOptions]) -> Chat:
        """A conversation that :meth:`Chat.save` wrote, with the KV cache that it had.

        Tools and other ``options`` are not in the file: give them as to :meth:`chat`.

        If the engine, its version or its settings are others than those that made the file's KV cache, the
        conversation is read again by the next message: ``Chat.reread_reason`` and a warning in the log say why.
        :func:`session_settings` gives the settings to open the model with.

        Raises SessionError if the file is damaged, no session, of a newer version or of another model.
        """
        chat = self.resume_chat(path, **options)
        if chat.reread_reason:
            _log.warning("%s: the conversation will be read again: %s", path, chat.reread_reason)
        return chat

    def resume_chat(self, path: str | os.PathLike[str], **options: Unpack[ChatOptions]) -> Chat:
        """:meth:`load_chat` for who tells by other means that the conversation will be read again."""
        chat = self.chat(**options)
        adapters = self.adapter_set(chat.options.get("adapters"))
        messages, chat.reread_reason = self.sessions.resume(path, chat.cache_owner, adapters)
        chat.messages = list(messages)
        return chat

    def generate(self, prompt: str | Sequence[int], **options: Unpack[RequestOptions]) -> Generation:
        """Continue ``prompt`` as it stands, without a chat template; ``options`` are :class:`RequestOptions`.

        Token ids are taken as they are, control tokens among them: nothing is put before them.

        Raises OptionError, ContextFullError or BusyError at once.
        """
        check_known(options, RequestOptions.__optional_keys__, "generate")
        with self._preparing():
            self._check_writes()
            tokens = self._raw_tokens(prompt)
            deadline, adapters = _deadline(options), self.adapter_set(options.pop("adapters", None))
            sampling = self.sampling(options)
            check_room(len(tokens), self.n_ctx, (), None)
            return self._begun(tokens, sampling, deadline=deadline, adapters=adapters)

    def _preparing(self) -> AbstractContextManager[None]:
        """Around what leads to an answer."""
        self._engine.check_process()  # before the tokenizer's lock, which a thread that is not here may hold
        return self._engine.preparing()

    def _begun(self, tokens: Sequence[int], sampling: SamplingParams, **parts: Unpack[AnswerParts]) -> Generation:
        """The answer to a prompt of these tokens."""
        return generate(self._engine, tokens, sampling, keep_alive=self, **parts)

    def _raw_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """Those of a prompt without a template. OptionError for none, and for ids that the model has not."""
        if are_tokens(prompt):
            tokens = [check_whole("a token of the prompt", token, 0, self.tokenizer.n_vocab - 1) for token in prompt]
        else:
            check_text(prompt, "the prompt")
            text, bos = str(prompt), self.tokenizer.bos
            check_length(text, self.tokenizer, self.n_ctx)
            tokens = ([] if bos is None else [bos]) + self.tokenizer.encode(text)
        if not tokens:
            raise OptionError("the prompt is empty", remedy="give some text to continue")
        return tokens

    def embed(self, texts: Sequence[str], pooling: Pooling | None = None) -> NDArray[np.float32]:
        """One vector of unit length for each text, float32 ``(n, n_embd)``, in their order.

        ``pooling`` says how the hidden states of a text's tokens become one vector: ``mean``, ``last`` or ``cls``
        (None: see :meth:`pooling`). Each text stands alone, between the tokens that the model wants around it; nothing
        in it becomes a control token. Texts are embedded in batches between the tokens of running answers.

        Raises ContextFullError for a text of more tokens than ``n_ctx``, OptionError for one that has none, for what is
        no text and for a pooling that is unknown or not this model's, InputError if the model embeds nothing.
        """
        chosen = self.pooling(pooling)
        if not chosen.is_known and not self._has_told_pooling:
            self._has_told_pooling = True
            _log.warning("%s: pooling by %s", self.artifact.path, chosen)
        check_texts(texts)
        return self._vectors(texts, chosen.name)

    def _vectors(self, texts: Sequence[str], pooling: Pooling) -> NDArray[np.float32]:
        self._engine.check_process()  # before the tokenizer's lock, which a thread that is not here may hold
        return self._embeddings.of(text_tokens(texts, self.tokenizer, self.n_ctx), pooling)

    def pooling(self, asked: Pooling | None = None) -> PoolingChoice:
        """How :meth:`embed` pools, and why: as asked, as the file says, else by the mean. It raises what that does."""
        return choose_pooling(self.artifact, asked)

    def answer(
        self,
        messages: Sequence[Message],
        *,
        on_finish: Callable[[Answer], None] | None = None,
        owner: CacheOwner | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Answer a conversation; ``on_finish`` is called with the answer when its last piece is taken.

        ``options`` are :class:`edge_llama.AnswerOptions`: SamplingParams' fields, tools, and a template's variables.
        ``owner`` is whose KV cache this goes on from.
        """
        check_known(options, AnswerOptions.__optional_keys__, "answer")
        with self._preparing():
            self._check_writes()
            tools, variables = tools_of(options.pop("tools", None)), options.pop("template_variables", None) or {}
            tool_format, tool_choice = options.pop("tool_format", None), options.pop("tool_choice", None)
            is_single = not options.pop("parallel_tool_calls", True)
            called = called_tools(tool_choice, tools, has_schema=options.get("json_schema") is not None)
            messages = check_messages(messages)
            tokens = self._prompt(messages, tools, variables, self.n_ctx)
            images = images_of(messages)
            encoder = self.require_vision() if images else None
            check_room(len(tokens), self.n_ctx, images, encoder)
            names = tools.names | trained_tools(variables)
            calls = None
            if called:
                style = self.template.calls_as(tool_format)
                tool_format = style.form.name
                may_answer = decides(tool_choice)
                is_one = is_single or not (may_answer or tool_choice == REQUIRED)
                control = self.tokenizer.control_tokens
                calls = call_grammar(called, style, control, is_single=is_one, may_answer=may_answer)
            is_parsed = (names or tool_format) and tool_choice != NONE
            parser = self.template.call_parser(names, tool_format, is_single=is_single) if is_parsed else None
            deadline, adapters = _deadline(options), self.adapter_set(options.pop("adapters", None))
            return self._begun(
                tokens,
                self.sampling(options),
                thinking=self.template.thinking_parser(tokens, has_tools=bool(tools.told)),
                parser=parser,
                calls=calls,
                on_finish=on_finish,
                owner=owner,
                image_embeddings=ImageEmbeddings(encoder, tokens, images) if encoder else None,
                deadline=deadline,
                adapters=adapters,
            )

    def adapter_set(self, asked: AskedAdapters | None) -> AdapterSet:
        """What an answer's ``adapters`` mean. OptionError for one that is none of :attr:`adapters`, or its weight."""
        return chosen(asked, self.adapters, is_deterministic=self._is_deterministic)

    def _check_writes(self) -> None:
        """InputError for an encoder: it has no next token."""
        if self.artifact.is_encoder:
            raise InputError(
                f"{self.artifact.path}: the model ({self.artifact.architecture}) embeds text and writes none",
                remedy="embed texts with it: Model.embed, or edge-llama embed",
            )

    def prefetch(
        self,
        messages: Sequence[Message],
        owner: CacheOwner,
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """Have what is kept of a conversation in the engine, for ``owner`` to go on from; how many tokens that is."""
        tokens = np.array(self._prompt(messages, tools_of(tools), template_variables or {}, None), np.int32)
        used = self.adapter_set(adapters)
        return self._engine.call(lambda: self._engine.cache.prefetch(tokens, owner, used))

    def tokens_to_prefill(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """How many tokens of the conversation would have to be prefilled for an answer with these ``adapters``.

        What was prefilled with others, or with none, is of no use to it.
        """
        tokens = np.array(self._prompt(messages, tools_of(tools), template_variables or {}, None), np.int32)
        used = self.adapter_set(adapters)
        return len(tokens) - self._engine.call(lambda: self._engine.cache.known(tokens, used))

    def count_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        n_ctx: int | None = None,
    ) -> int:
        """How many tokens the conversation takes, rendered for an answer.

        ContextFullError, without counting, if they are clearly more than ``n_ctx``.
        """
        return len(self._prompt(messages, tools_of(tools), template_variables or {}, n_ctx))

    def _prompt(
        self, messages: Sequence[Message], tools: Tools, variables: Mapping[str, Any], n_ctx: int | None
    ) -> list[int]:
        checked = check_messages(messages)
        ids = self.require_vision().ids if images_of(checked) else None
        return self.template.tokens(checked, tools=tools.told, variables=variables, n_ctx=n_ctx, image_ids=ids)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; TemplateError if there is none or it is not valid."""
        return self._template.compiled(self.tokenizer)

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """The sampling options that the model's publisher recommends, as far as the file carries them.

        One that can't be used is left out with a warning in the log: the model runs without it.
        """
        return recommended(self.artifact.sampling, lambda why: _log.warning("%s: %s", self.artifact.path, why))

    def sampling(self, options: Mapping[str, Any]) -> SamplingParams:
        """``options`` on top of the model's own defaults. OptionError for one that is unknown or out of range."""
        return SamplingParams.from_options({**self.sampling_defaults, **options})

    def stats(self) -> Stats:
        """What the engine is doing, and what it has done since the model was opened."""
        return self._engine.stats()

    def close(self) -> None:
        """Cancel what is running and free the memory. May be called twice."""
        self._finalizer()

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        """CopyError, from pickle and copy: a model is memory and threads of this process."""
        raise CopyError(
            f"{self.artifact.name}: a Model can't be pickled or copied",
            remedy="threads and tasks share it; another process opens it for itself (edge_llama.open, from the path)",
        )

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_cells(tower: TextTower, kv_cells: int | None) -> None:
    if kv_cells is not None and tower.n_cells != kv_cells:
        raise OptionError(
            f"kv_cells is {kv_cells:,}, but this model's engine holds one conversation at a time, of {tower.n_cells:,}",
            remedy="leave it out",
        )


def _deadline(options: RequestOptions) -> float | None:
    """When the request must be done, by time.monotonic; taken out of ``options``."""
    seconds = options.pop("deadline", None)
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise OptionError(f"deadline is {seconds!r}, expected seconds, more than 0")
    return time.monotonic() + seconds


def vision_of(model: str | os.PathLike[str] | None, options: OpenOptions) -> VisionArtifact | None:
    """The vision tower that was given, or the one that lies in a bundle or a folder beside the text tower."""
    given = options.get("vision")
    if given is not None:
        vision: VisionArtifact | None = read_vision(Path(str(path_of(given))))
    else:
        path = found(path_of(model))
        vision = read_bundle(path).vision if path.is_dir() else None
    if vision is None and "max_tiles" in options:
        raise OptionError("max_tiles: the model has no vision tower", remedy="give one: vision= (--vision FILE)")
    return vision


def _place_vision(artifact: Artifact, vision: VisionArtifact | None, options: OpenOptions) -> Placement | None:
    """Where the vision tower goes. ArtifactError if the text tower takes no images, OptionError for no such device."""
    device = options.get("vision_device", "auto")
    if vision is None:
        if device != "auto":
            raise OptionError(
                f"vision_device is {device!r}, but the model has no vision tower",
                remedy="leave it out (--vision-device), or give a tower: vision= (--vision FILE)",
            )
        return None
    if not artifact.takes_embeddings:
        raise ArtifactError(
            f"{artifact.path}: its graph takes no images: it has no input {IMAGE_FEATURES}",
            remedy=f"convert the text model again, or open it without {vision.path}",
        )
    told = tuple(options.get("provider_options") or ())
    asked = AskedDevice(device, is_strict=options.get("strict_device", False), provider_options=told)
    return vision_engine_of(vision).place(vision, asked)


def _check_told(options: OpenOptions, *placements: Placement | None) -> None:
    """OptionError for an option of a provider that neither tower's takes."""
    told = {text for placement in placements if placement for text in placement.provider_options}
    left = [text for text in options.get("provider_options") or () if text not in told]
    check_provider_options(left, *(placement.device for placement in placements if placement))


def sees_no_images(artifact: Artifact) -> InputError:
    """What is raised where a model without a vision tower is to see an image."""
    return InputError(
        f"{artifact.path}: the model sees no images: it has no vision tower",
        remedy="open a model that has one, or give one: vision= (--vision FILE)",
    )


def are_tokens(prompt: object) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is no text but a sequence, which must be of token ids."""
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)


def path_of(model: object) -> str | None:
    """What was given for a model's or a tower's path, as text; OptionError for bytes and other things."""
    path = os.fspath(model) if isinstance(model, os.PathLike) else model
    if path is None or isinstance(path, str):
        return path
    raise OptionError(f"the model is {type(path).__name__}, expected a path as text", remedy="os.fsdecode makes one")
