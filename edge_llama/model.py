"""A model that is open: the runtime's front door."""

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

from edge_llama import devices
from edge_llama.artifact import locate, read_artifact
from edge_llama.chat import Chat
from edge_llama.engine import Engine
from edge_llama.errors import ContextFullError, OptionError, TemplateError
from edge_llama.generation import Answer, Generation
from edge_llama.messages import Message, check_messages, check_text
from edge_llama.pace import Pace
from edge_llama.plan import plan_engine
from edge_llama.prompts import ChatTemplate
from edge_llama.sampling import SamplingParams, check_whole

_log = logging.getLogger("edge_llama")
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


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
        self.artifact = artifact = read_artifact(locate(_path(model)))
        self._template_source = chat_template or artifact.chat_template
        plan = plan_engine(
            artifact,
            n_ctx=n_ctx,
            n_batch=n_batch,
            flash_attention=flash_attention,
            kv_format=kv_format,
            device=device,
            tune=tune,
        )
        self.context, self.choice, self.placement = plan.context, plan.choice, plan.placement
        tower = plan.open(threads or devices.cpu_threads())
        self.tokenizer = tower.tokenizer
        # While a GPU works its thread sleeps: that says nothing about others.
        pace = None if threads or self.placement.gpu_layers else Pace(devices.cpu_threads())
        self._engine = Engine(tower, pace.begin if pace else lambda: threads or devices.free_threads(), pace)
        self._finalizer = weakref.finalize(self, self._engine.close)
        _log.info("%s: %s; %s; %s", artifact.path, self.context, self.choice, self.placement)

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return self.context.n_ctx

    def chat(self, *, system: str | None = None) -> Chat:
        """A new conversation. Raises TemplateError if the model has no chat template."""
        _ = self.template
        return Chat(self, system=system)

    def generate(self, prompt: str, **params: Any) -> Generation:
        """Continue ``prompt`` as it stands, without a chat template; ``params`` are those of SamplingParams.

        Raises OptionError or ContextFullError at once.
        """
        self._engine.check_process()  # before the tokenizer's lock, which a thread that is not here may hold
        check_text(prompt, "the prompt")
        bos = self.tokenizer.bos
        tokens = ([] if bos is None else [bos]) + self.tokenizer.encode(prompt)
        if not tokens:
            raise OptionError("the prompt is empty", remedy="give some text to continue")
        return self._generate(tokens, params)

    def answer(
        self, messages: Sequence[Message], *, on_finish: Callable[[Answer], None] | None = None, **params: Any
    ) -> Generation:
        """Answer a conversation; ``on_finish`` is called with the answer when its last piece is taken."""
        self._engine.check_process()
        return self._generate(self.template.tokens(check_messages(messages)), params, on_finish)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens the conversation takes, rendered for an answer."""
        return len(self.template.tokens(check_messages(messages)))

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
        """The sampling settings that the model's publisher recommends, as far as the file carries them.

        One that can't be used is left out with a warning in the log: the model runs without it.
        """
        defaults: dict[str, Any] = {}
        for key, name in _SAMPLING_KEYS.items():
            field = self.artifact.header.fields.get(f"general.sampling.{key}")
            if field is None:
                continue
            value: Any = 0 if key == "top_k" and _is_all(field.data) else field.data
            try:
                defaults[name] = getattr(SamplingParams(**{name: value}), name)
            except OptionError as error:
                _log.warning("%s: general.sampling.%s is ignored: %s", self.artifact.path, key, error)
        return defaults

    def _generate(
        self, tokens: Sequence[int], params: dict[str, Any], on_finish: Callable[[Answer], None] | None = None
    ) -> Generation:
        try:
            sampling = SamplingParams(**{**self.sampling_defaults, **params})
        except TypeError as error:
            known = ", ".join(SamplingParams.__slots__)
            raise OptionError(f"unknown option: {error}", remedy=f"known: {known}") from error
        if len(tokens) >= self.n_ctx:
            raise ContextFullError(len(tokens), self.n_ctx)
        return Generation(self._engine, tokens, sampling, on_finish=on_finish, owner=self)

    def close(self) -> None:
        """Cancel what is running and free the memory. May be called twice."""
        self._finalizer()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
) -> Model:
    """Open a model: a ``.gguf`` file, a folder with one, the name ``smollm2``, or None for the default.

    ``n_ctx`` None takes what the model was trained for as far as it is useful and fits the memory
    (``Model.context`` says); ``threads`` None takes the cores that are free, from token to token: with flash attention
    on, and only then, their number changes how numbers are rounded.
    ``flash_attention`` None is off, because generation on a CPU is faster without (prompts are faster with); on a GPU
    it is on. ``kv_format`` is f16 (None), f32 or q8_0; ``n_batch`` tokens of a prompt are computed together (512).
    ``tune`` lets a measurement choose these three where they are None: half a second once for a model file, then
    remembered in the user's cache folder (``Model.choice`` says). Without it nothing outside the call decides.
    ``device`` auto takes a GPU if llama.cpp is built for one and the model fits it; or cpu, or gpu.
    ``chat_template`` is Jinja text in place of the model's own.

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
    )
