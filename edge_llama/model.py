"""A model that is open: the runtime's front door."""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from edge_llama.backends.base import TextTower, VisionTower
from edge_llama.chat import Chat, ChatOptions
from edge_llama.errors import ArtifactError, InputError, OptionError, TemplateError
from edge_llama.files.artifact import VisionArtifact, existing, locate, read_artifact, read_bundle, read_vision
from edge_llama.files.onnx_text import IMAGE_FEATURES
from edge_llama.files.text_artifact import Artifact
from edge_llama.generation import Answer, AnswerOptions, Generation
from edge_llama.host import devices
from edge_llama.media.images import Image
from edge_llama.planning.plan import plan_engine
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.messages import Message, check_messages, check_text, images_of
from edge_llama.prompts.tokenizer import check_length
from edge_llama.prompts.tools import Tool, Tools, tools_of, trained_tools
from edge_llama.runtime.chat_sessions import ChatSessions
from edge_llama.runtime.encoders import ImageEmbeddings, ImageEncoder, check_room
from edge_llama.runtime.kv_store import CacheOwner
from edge_llama.runtime.scheduler import Engine
from edge_llama.runtime.thread_pacer import Pace
from edge_llama.sampling.params import SamplingOptions, SamplingParams, check_whole, recommended

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

    @cached_property
    def sessions(self) -> ChatSessions:
        """What the engine holds of the model's chats."""
        return ChatSessions(self._engine, self.artifact, self.identity)

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

    def chat(self, *, system: str | None = None, **options: Unpack[ChatOptions]) -> Chat:
        """A new conversation; ``options`` are :class:`edge_llama.ChatOptions`, among them :meth:`answer`'s.

        Raises TemplateError if the model has no chat template.
        """
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
        saved = self.sessions.load(path)
        chat = self.chat(**options)
        chat.messages = list(saved.messages)
        chat.reread_reason = self.sessions.adopt(saved, chat.cache_owner)
        return chat

    def generate(self, prompt: str, **options: Unpack[SamplingOptions]) -> Generation:
        """Continue ``prompt`` as it stands, without a chat template; ``options`` are SamplingParams' fields.

        Raises OptionError or ContextFullError at once.
        """
        self._engine.check_process()  # before the tokenizer's lock, which a thread that is not here may hold
        check_text(prompt, "the prompt")
        bos = self.tokenizer.bos
        check_length(prompt, self.tokenizer, self.n_ctx)
        tokens = ([] if bos is None else [bos]) + self.tokenizer.encode(prompt)
        if not tokens:
            raise OptionError("the prompt is empty", remedy="give some text to continue")
        sampling = self.sampling(options)
        check_room(len(tokens), self.n_ctx, (), None)
        return Generation(self._engine, tokens, sampling, keep_alive=self)

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
        While ``owner`` lives, its KV cache is kept as long as there is memory; without one, until another answer.
        """
        self._engine.check_process()
        tools, variables = tools_of(options.pop("tools", None)), options.pop("template_variables", None) or {}
        tool_format = options.pop("tool_format", None)
        messages = check_messages(messages)
        tokens = self._prompt(messages, tools, variables, self.n_ctx)
        images = images_of(messages)
        encoder = self.require_vision() if images else None
        check_room(len(tokens), self.n_ctx, images, encoder)
        names = tools.names | trained_tools(variables)
        parser = self.template.call_parser(names, tool_format) if names or tool_format else None
        return Generation(
            self._engine,
            tokens,
            self.sampling(options),
            parser=parser,
            on_finish=on_finish,
            keep_alive=self,
            owner=owner,
            image_embeddings=ImageEmbeddings(encoder, tokens, images) if encoder else None,
        )

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

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; TemplateError if there is none or it is not valid."""
        if not self._template_source:
            raise TemplateError(
                f"{self.artifact.path}: the model has no chat template",
                remedy="pass one (--chat-template FILE), or continue plain text (run --raw, Model.generate)",
            )
        return ChatTemplate(self._template_source, self.tokenizer, str(self.artifact.path))

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """The sampling options that the model's publisher recommends, as far as the file carries them.

        One that can't be used is left out with a warning in the log: the model runs without it.
        """
        return recommended(self.artifact.sampling, lambda why: _log.warning("%s: %s", self.artifact.path, why))

    def sampling(self, options: Mapping[str, Any]) -> SamplingParams:
        """``options`` on top of the model's own defaults. OptionError for one that is unknown or out of range."""
        return SamplingParams.from_options({**self.sampling_defaults, **options})

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
