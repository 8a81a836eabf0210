"""A model that is open: the runtime's front door."""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_llama.backends.base import TextTower, VisionTower
from edge_llama.chat import Chat
from edge_llama.errors import (
    ArtifactError,
    ContextFullError,
    EngineError,
    InputError,
    OptionError,
    SessionError,
    TemplateError,
)
from edge_llama.files.artifact import VisionArtifact, existing, locate, read_artifact, read_bundle, read_vision
from edge_llama.files.onnx_text import IMAGE_FEATURES
from edge_llama.files.text_artifact import Artifact
from edge_llama.generation import Answer, Generation
from edge_llama.host import devices
from edge_llama.media.images import Image
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.context_overflow import Shortened, WhenFull
from edge_llama.prompts.messages import Message, check_messages, check_text, images_of
from edge_llama.prompts.tokenizer import check_length
from edge_llama.prompts.tool_parser import ToolCallParser
from edge_llama.prompts.tools import Tool, Tools, tools_of, trained_tools
from edge_llama.runtime import session_file
from edge_llama.runtime.encoders import ImageEncoder, ImageEmbeddings
from edge_llama.runtime.kv_store import CacheOwner, State
from edge_llama.runtime.scheduler import Engine
from edge_llama.runtime.session import Session
from edge_llama.runtime.session_file import SavedChat
from edge_llama.runtime.thread_pacer import Pace
from edge_llama.sampling.params import SamplingParams, check_whole

_log = logging.getLogger("edge_llama")


class Model:
    """A model file, loaded. Threads may share it; their work is done in turn."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        n_batch: int | None = None,
        flash_attention: bool | None = None,
        kv_format: str | None = None,
        device: str = "auto",
        tune: bool = False,
        chat_template: str | None = None,
        session_bytes: int | None = None,
        vision: str | os.PathLike[str] | None = None,
        max_tiles: int | None = None,
    ) -> None:
        """See :func:`open`."""
        if threads is not None:
            threads = check_whole("threads", threads, 1, 512)
        if n_batch is not None:
            n_batch = check_whole("n_batch", n_batch, 1, 4096)
        if n_ctx is not None:
            n_ctx = check_whole("n_ctx", n_ctx, 2, 2**31 - 1)
        if chat_template is not None:
            check_text(chat_template, "chat_template")
        if session_bytes is not None:
            session_bytes = check_whole("session_bytes", session_bytes, 0, 2**63 - 1)
        if max_tiles is not None:
            max_tiles = check_whole("max_tiles", max_tiles, 1, 256)
        self.artifact = artifact = read_artifact(locate(_path(model)))
        sees = read_vision(Path(str(_path(vision)))) if vision is not None else _bundled_vision(model)
        if max_tiles is not None and sees is None:
            raise OptionError("max_tiles: the model has no vision tower", remedy="give one: vision= (--vision FILE)")
        self._template_source = chat_template or artifact.chat_template
        if sees is not None:
            _check_sight(artifact, sees)
        plan = plan_engine(
            artifact,
            n_ctx=n_ctx,
            n_batch=n_batch,
            flash_attention=flash_attention,
            kv_format=kv_format,
            device=device,
            tune=tune,
            other_bytes=sees.nbytes if sees else 0,
        )
        self.context, self.choice, self.placement = plan.context, plan.choice, plan.placement
        if plan.has_fixed_threads:
            threads = threads or devices.cpu_threads()
        self.threads = threads
        """How many threads every token takes; None: as many as are free then."""
        tower = plan.open(threads or devices.cpu_threads())
        self.tokenizer = tower.tokenizer
        try:
            embedder = _embedder(sees, tower, max_tiles, threads or devices.cpu_threads()) if sees else None
        except BaseException:
            tower.close()
            raise
        # While a GPU works its thread sleeps: that says nothing about others.
        pace = None if threads or self.placement.gpu_layers else Pace(devices.cpu_threads())
        limit = self.context.bytes if session_bytes is None else session_bytes
        self._engine = Engine(
            tower,
            pace.begin if pace else lambda: threads or devices.free_threads(),
            lambda used: min(limit, used + devices.available_memory() // 2),
            pace,
            embedder,
        )
        try:
            self.identity = artifact.identity()
        except BaseException:
            self._engine.close()
            raise
        self._finalizer = weakref.finalize(self, self._engine.close)
        _log.info("%s: %s; %s; %s", artifact.path, self.context, self.choice, self.placement)

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return self.context.n_ctx

    @property
    def vision(self) -> VisionArtifact | None:
        """The vision tower's file; None if the model sees no images."""
        return self._engine.encoder.artifact if self._engine.encoder else None

    def require_vision(self) -> ImageEncoder:
        """What embeds images; InputError if the model sees none."""
        if self._engine.encoder is None:
            raise InputError(
                f"{self.artifact.path}: the model sees no images: it has no vision tower",
                remedy="open a model that has one, or give one: vision= (--vision FILE)",
            )
        return self._engine.encoder

    def image_tokens(self, image: Image) -> int:
        """How many tokens of context an image takes. InputError if the model sees none."""
        return len(self.require_vision().ids(image))

    def chat(
        self,
        *,
        system: str | None = None,
        when_full: WhenFull = "error",
        on_shortened: Callable[[Shortened], None] | None = None,
        **options: Any,
    ) -> Chat:
        """A new conversation; ``options`` are :meth:`answer`'s, for all its answers.

        ``when_full`` says what happens when a message leaves no room for an answer: ``error`` refuses it once it
        does not fit at all, ``drop-oldest`` leaves out the oldest exchanges, ``compact`` has the model summarise
        them; never the system message. ``on_shortened`` is called with what was done, which ``Chat.shortened`` keeps.

        Raises TemplateError if the model has no chat template.
        """
        _ = self.template
        return Chat(self, system=system, when_full=when_full, on_shortened=on_shortened, **options)

    def load_chat(
        self,
        path: str | os.PathLike[str],
        *,
        when_full: WhenFull = "error",
        on_shortened: Callable[[Shortened], None] | None = None,
        **options: Any,
    ) -> Chat:
        """A conversation that :meth:`Chat.save` wrote, with all that the model had read of it.

        Tools and other ``options`` are not in the file: give them as to :meth:`chat`.

        If the engine, its version or its settings are others than those that made the file's KV cache, the
        conversation is read again by the next message: ``Chat.reread_reason`` and a warning in the log say why.
        :func:`session_settings` gives the settings to open the model with.

        Raises SessionError if the file is damaged, no session, of a newer version or of another model.
        """
        chat = self.resume_chat(path, when_full=when_full, on_shortened=on_shortened, **options)
        if chat.reread_reason:
            _log.warning("%s: the conversation will be read again: %s", path, chat.reread_reason)
        return chat

    def resume_chat(self, path: str | os.PathLike[str], **options: Any) -> Chat:
        """:meth:`load_chat` for who tells by other means that the conversation will be read again."""
        saved = session_file.read(_session_path(path))
        if saved.identity != self.identity:
            raise SessionError(
                f"{path}: a session of {saved.model} (identity {saved.identity[:12]}), the open model is "
                f"{self.artifact.name} ({self.identity[:12]}, {self.artifact.path})",
                remedy="open the model that it was saved with",
            )
        if saved.images and self.vision is None:
            raise SessionError(
                f"{path}: it has {len(saved.images)} images, and the open model has no vision tower",
                remedy="open the model with the one that it had (--vision FILE)",
            )
        chat = self.chat(**options)
        chat.messages = list(saved.messages)
        chat.reread_reason = self._adopt(saved, chat)
        return chat

    def generate(self, prompt: str, **params: Any) -> Generation:
        """Continue ``prompt`` as it stands, without a chat template; ``params`` are those of SamplingParams.

        Raises OptionError or ContextFullError at once.
        """
        self._engine.check_process()  # before the tokenizer's lock, which a thread that is not here may hold
        check_text(prompt, "the prompt")
        bos = self.tokenizer.bos
        check_length(prompt, self.tokenizer, self.n_ctx)
        tokens = ([] if bos is None else [bos]) + self.tokenizer.encode(prompt)
        if not tokens:
            raise OptionError("the prompt is empty", remedy="give some text to continue")
        return self._generate(tokens, params)

    def answer(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        tool_format: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        on_finish: Callable[[Answer], None] | None = None,
        owner: CacheOwner | None = None,
        **params: Any,
    ) -> Generation:
        """Answer a conversation; ``on_finish`` is called with the answer when its last piece is taken.

        While ``owner`` lives, what was read is kept as long as there is memory; without one, until others read.

        ``tools`` are functions or JSON schemas (:data:`edge_llama.prompts.tools.Tool`). The model is told of them, and
        calls that it writes are taken out of the text: ``json`` or ``pythonic`` ones, as ``tool_format`` says or else
        the model's template. ``template_variables`` are what the template asks for besides: ``date_string``,
        ``tools_in_user_message``, ``builtin_tools``, ... ; ``params`` are those of SamplingParams.
        """
        self._engine.check_process()
        described, variables = tools_of(tools), template_variables or {}
        messages = check_messages(messages)
        tokens = self._prompt(messages, described, variables, self.n_ctx)
        images = images_of(messages)
        self.check_room(len(tokens), images)
        image_embeddings = ImageEmbeddings(self.require_vision(), tokens, images) if images else None
        names = described.names | trained_tools(variables)
        parser = self.template.call_parser(names, tool_format) if names or tool_format else None
        return self._generate(tokens, params, on_finish, parser, owner, image_embeddings)

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
        return self.template.tokens(checked, tools=tools.schemas, variables=variables, n_ctx=n_ctx, image_ids=ids)

    def check_room(self, needed: int, images: Sequence[Image]) -> None:
        """ContextFullError if a prompt of ``needed`` tokens doesn't fit, which says what would if it has images."""
        if needed < self.n_ctx:
            return
        remedy = ""
        if images:
            over = needed - self.n_ctx + 1
            fewer = self.require_vision().fewer_tiles(images, over)
            offer = f"max_tiles={fewer} (--max-tiles {fewer}) would do" if fewer else "fewer tiles would not do"
            remedy = f"that is {over:,} too many: {offer}; or a larger n_ctx (--n-ctx)"
        raise ContextFullError(needed, self.n_ctx, remedy=remedy)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; TemplateError if there is none or it is not valid."""
        if not self._template_source:
            raise TemplateError(
                f"{self.artifact.path}: the model has no chat template",
                remedy="pass one (--chat-template FILE), or continue plain text (run --raw, Model.generate)",
            )
        return ChatTemplate(self._template_source, self.tokenizer, str(self.artifact.path))

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """Keep for ``other`` what is kept for ``owner`` at this point of the engine's work."""
        self._engine.submit(lambda job: job.engine.session.share(owner, other))

    def save_chat(self, path: str | os.PathLike[str], messages: Sequence[Message], owner: CacheOwner) -> None:
        """Write ``messages`` and what is kept for ``owner``: see :meth:`Chat.save`."""
        target = _session_path(path)
        state = self._engine.call(lambda session: session.state(owner))
        settings = {**self._engine.tower.settings, "n_ctx": self.n_ctx}
        checked = check_messages(messages)
        hashes = tuple(dict.fromkeys(image.digest for image in images_of(checked)))
        session_file.write(target, SavedChat(self.artifact.name, self.identity, settings, checked, state, hashes))

    def _adopt(self, saved: SavedChat, chat: Chat) -> str | None:
        """Have the engine take over the cache of a saved chat; why it can't, if so."""
        state = saved.state
        if state is None:
            return "its KV cache was not kept when it was saved" if saved.messages else None
        n_vocab = self.artifact.n_vocab
        # Also a conversation without images may have read some: they were taken back since.
        is_odd = (state.tokens >= n_vocab) | ((state.tokens < 0) if self.vision is None else False)
        if is_odd.any() or (state.logits is not None and len(state.logits) != n_vocab):
            raise SessionError("the session's tokens are not those of its model", remedy="begin a new chat")
        if reason := self._difference(saved.settings):
            return reason
        if len(state.tokens) > self.n_ctx:
            return f"its {len(state.tokens):,} tokens don't fit the context of {self.n_ctx:,}"

        def adopt(session: Session) -> str | None:
            try:
                session.adopt(state, chat.cache_owner)
            except EngineError as error:
                return str(error)
            return None

        return self._engine.call(adopt) or self._unseen(state, images_of(saved.messages))

    def _unseen(self, state: State, images: Sequence[Image]) -> str | None:
        """Why images are read again although the cache is used, if so: their ids are others here."""
        read = set(state.tokens[state.tokens < 0].tolist())
        count = sum(not read.issuperset(id_ for id_ in self.require_vision().ids(image) if id_ < 0) for image in images)
        return f"{count:,} images were read by another vision tower, or in other tiles (max_tiles)" if count else None

    def _difference(self, saved: Mapping[str, Any]) -> str | None:
        """What differs between the settings that made a KV cache and those here, if it matters."""
        here = dict(self._engine.tower.settings)
        if self.artifact.cache_depends_on_context:
            here["n_ctx"] = self.n_ctx
        odd = [f"{key} was {saved.get(key)} and is {value}" for key, value in here.items() if saved.get(key) != value]
        return ", ".join(odd) or None

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """The sampling settings that the model's publisher recommends, as far as the file carries them.

        One that can't be used is left out with a warning in the log: the model runs without it.
        """
        defaults: dict[str, Any] = {}
        for entry in self.artifact.sampling:
            value: Any = 0 if entry.option == "top_k" and _is_all(entry.value) else entry.value
            try:
                defaults[entry.option] = getattr(SamplingParams(**{entry.option: value}), entry.option)
            except OptionError as error:
                _log.warning("%s: %s is ignored: %s", self.artifact.path, entry.called, error)
        return defaults

    def sampling(self, params: Mapping[str, Any]) -> SamplingParams:
        """``params`` on top of the model's own defaults. OptionError for one that is unknown or out of range."""
        try:
            return SamplingParams(**{**self.sampling_defaults, **params})
        except TypeError as error:
            known = ", ".join(SamplingParams.__slots__)
            raise OptionError(f"unknown option: {error}", remedy=f"known: {known}") from error

    def _generate(
        self,
        tokens: Sequence[int],
        params: dict[str, Any],
        on_finish: Callable[[Answer], None] | None = None,
        parser: ToolCallParser | None = None,
        owner: CacheOwner | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> Generation:
        sampling = self.sampling(params)
        self.check_room(len(tokens), ())
        return Generation(
            self._engine,
            tokens,
            sampling,
            parser=parser,
            on_finish=on_finish,
            keep_alive=self,
            owner=owner,
            image_embeddings=image_embeddings,
        )

    def close(self) -> None:
        """Cancel what is running and free the memory. May be called twice."""
        self._finalizer()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bundled_vision(model: str | os.PathLike[str] | None) -> VisionArtifact | None:
    """The vision tower that lies in a bundle or a folder beside the text tower."""
    path = existing(_path(model))
    return read_bundle(path).vision if path.is_dir() else None


def _check_sight(artifact: Artifact, sees: VisionArtifact) -> None:
    if not artifact.takes_embeddings:
        raise ArtifactError(
            f"{artifact.path}: its graph takes no images: it has no input {IMAGE_FEATURES}",
            remedy=f"convert the text model again, or open it without {sees.path}",
        )


def _embedder(sees: VisionArtifact, tower: TextTower, max_tiles: int | None, threads: int) -> ImageEncoder:
    if sees.spec.n_embd != tower.n_embd:
        raise ArtifactError(
            f"{sees.path}: its embeddings are {sees.spec.n_embd:,} wide, the text model's {tower.n_embd:,}",
            remedy="the towers are of different models: open those that belong together",
        )

    def opened() -> VisionTower:
        from edge_llama.backends.registry import open_vision  # noqa: PLC0415 - loads native code

        return open_vision(sees, threads=threads)

    return ImageEncoder(sees, opened, tower.tokenizer.control_tokens, max_tiles)


def session_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a saved chat was made with, to give to :func:`open`: only so is nothing read again.

    Raises SessionError if the file is damaged, no session or of a newer version.
    """
    saved = session_file.read(_session_path(path)).settings
    return {key: saved[key] for key in ("n_ctx", "flash_attention", "kv_format") if key in saved}


def _session_path(path: object) -> Path:
    if isinstance(path, str | os.PathLike) and isinstance(name := os.fspath(path), str) and "\0" not in name:
        return Path(name)
    raise OptionError(f"a session's path is {path!r}, expected text", remedy="os.fsdecode makes one of bytes")


def _is_all(top_k: object) -> bool:
    """Whether a file's ``top_k`` means all tokens: publishers write -1 as well as 0."""
    return isinstance(top_k, int) and not isinstance(top_k, bool) and top_k <= 0


def _path(model: object) -> str | None:
    path = os.fspath(model) if isinstance(model, os.PathLike) else model
    if path is None or isinstance(path, str):
        return path
    raise OptionError(f"the model is {type(path).__name__}, expected a path as text", remedy="os.fsdecode makes one")


def open(  # noqa: A001 - as in io.open; used as edge_llama.open
    model: str | os.PathLike[str] | None = None,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    n_batch: int | None = None,
    flash_attention: bool | None = None,
    kv_format: str | None = None,
    device: str = "auto",
    tune: bool = False,
    chat_template: str | None = None,
    session_bytes: int | None = None,
    vision: str | os.PathLike[str] | None = None,
    max_tiles: int | None = None,
) -> Model:
    """Open a model: a ``.gguf`` file, a folder with one or with an ONNX model, the name ``smollm2``, or None.

    None is the default model. A folder with an ONNX model is as onnxruntime-genai reads it; ONNX Runtime runs it.

    ``n_ctx`` None takes what the model was trained for as far as it is useful and fits the memory
    (``Model.context`` says); ``threads`` None takes the cores that are free, from token to token: with flash attention
    on, and only then, their number changes how numbers are rounded.
    ``flash_attention`` None is off, because generation on a CPU is faster without (prompts are faster with); on a GPU
    it is on. ``kv_format`` is f16 (None), f32 or q8_0; ``n_batch`` tokens of a prompt are computed together (512).
    ``tune`` lets a measurement choose these three where they are None: half a second once for a model file, then
    remembered in the user's cache folder (``Model.choice`` says). Without it nothing outside the call decides.
    For an ONNX model these two are given by its graph, and are an error; its number of threads is kept.
    ``device`` auto takes a GPU if llama.cpp is built for one and the model fits it; or cpu, or gpu. For an ONNX model
    auto is the cpu; others by their names (cuda, openvino, qnn, ...) take the whole model or are an error.
    ``chat_template`` is Jinja text in place of the model's own.
    ``session_bytes`` of memory may keep what chats have read while others read; None: as much as the KV cache takes.
    Never more than half of what is free.
    ``vision`` is the file of a vision tower (a bundle, its ``.onnx`` file, an mmproj ``.gguf``) in place of the model's
    own; images are cut into ``max_tiles`` tiles at most, or as many as the model knows.

    Raises ArtifactError, OptionError or EngineError; the latter also if llama.cpp does not work on this processor,
    which a child process finds out once for each build of it.
    """
    return Model(
        model,
        n_ctx=n_ctx,
        threads=threads,
        n_batch=n_batch,
        flash_attention=flash_attention,
        kv_format=kv_format,
        device=device,
        tune=tune,
        chat_template=chat_template,
        session_bytes=session_bytes,
        vision=vision,
        max_tiles=max_tiles,
    )
