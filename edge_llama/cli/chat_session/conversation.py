"""A chat in the terminal: the model, the conversation, and the settings of its answers."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.chat import Chat, ChatOptions
from edge_llama.cli.chat_session.conversations import Kept
from edge_llama.cli.chat_session.documents import Retrieval, tell_passages
from edge_llama.cli.chat_session.pictures import Shown
from edge_llama.cli.terminal.console import ended, logprob_lines, note, output, stream
from edge_llama.files.artifact import Artifact
from edge_llama.generation import Answer, Generation
from edge_llama.host import devices
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions, options_here
from edge_llama.planning.plan import fits_beside
from edge_llama.prompts.context_overflow import Shortened, WhenFull
from edge_llama.prompts.messages import Message
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import check_biases


class Conversation:
    """What the commands of a chat work on. It owns the model, which may be changed for another."""

    def __init__(
        self,
        open_model: Callable[..., Model],
        model: str | None,
        params: dict[str, Any],
        kept: Kept,
        *,
        opening: OpenOptions,
        saved: OpenOptions,
        retrieval: Retrieval | None = None,
        system: str | None = None,
        when_full: WhenFull = "error",
        plain: bool = False,
        hide_thinking: bool = False,
        adapters: Mapping[str, float] | None = None,
    ) -> None:
        """``open_model(name, options)`` opens a model by ``opening``, the first one also as it was ``saved`` with.

        ``params`` are :meth:`Model.answer`'s; ``kept`` remembers what is said, and may give what was; ``retrieval``
        finds passages of documents, and is closed with the conversation. ``adapters`` are those of the
        first answers, by weight.
        Raises what opening a model raises, OptionError, or TemplateError.
        """
        self.params = params
        self.last: Answer | None = None
        """The last answer, also a cancelled one; None before the first."""
        self.used = 0
        """Tokens that the conversation takes in the context, as far as they were counted."""
        self.is_over = False
        self.shown = Shown()
        """What goes before the next message's text."""
        self.retrieval = retrieval or Retrieval(partial(open_model, opening={}), None, is_on=False)
        """How passages of documents are found that don't fit."""
        self._opening = opening
        self._when_full = when_full
        self._adapters = dict(adapters or {})
        self.is_plain = plain
        """Whether answers are shown as they are written, and nothing is drawn."""
        self._hides_thinking = hide_thinking
        self._open = open_model
        self._kept = kept
        self._leaving = ExitStack()
        first: OpenOptions = {**saved, **opening}
        self._reopen: Callable[[], Model] = lambda: open_model(model, first)
        self.model = self._reopen()
        try:
            _check(self.model, params)
            led = kept.chat(self.model, system=system, **self._chat_options)
            self.chat = self._leaving.enter_context(led)
        except BaseException:
            self.model.close()
            raise

    def _new_chat(self, model: Model) -> Chat:
        """An empty conversation of ``model``. TemplateError if it can't chat, OptionError if it can't by the params."""
        _check(model, self.params)
        return model.chat(**self._chat_options)

    @property
    def _chat_options(self) -> ChatOptions:
        options: ChatOptions = {"when_full": self._when_full, "on_shortened": _tell}
        return {**options, "adapters": dict(self._adapters)} if self._adapters else options

    @property
    def adapters(self) -> Mapping[str, float]:
        """Those that the next answer is computed with, by weight."""
        return self._adapters

    @adapters.setter
    def adapters(self, weights: Mapping[str, float]) -> None:
        """OptionError for one that the model was not opened with."""
        self.model.adapter_set(dict(weights))
        self._adapters = dict(weights)
        self.chat.options["adapters"] = dict(weights)

    def tokens_to_prefill(self, weights: Mapping[str, float]) -> int:
        """How many tokens of what was said would be prefilled with these adapters."""
        return self.model.tokens_to_prefill(self.chat.messages, adapters=dict(weights))

    def keep(self) -> None:
        """Have what is new in the conversation remembered."""
        self._kept.keep(self.model, self.chat)

    @property
    def last_message(self) -> Message | None:
        """The last one of the user."""
        return next((message for message in reversed(self.chat.messages) if message.role == "user"), None)

    @property
    def all_said(self) -> list[Message]:
        """All messages: see :meth:`Kept.all_said`."""
        return self._kept.all_said(self.model, self.chat)

    def send(self, text: str) -> None:
        """Say ``text`` and show the answer. What waits to be shown goes with it; an error leaves it waiting."""
        shown = self.shown
        generation = self.chat.send(
            text,
            images=shown.images,
            video=shown.clip,
            files=shown.documents,
            retrieve=self.retrieval.is_on,
            embedding_model=self.retrieval.embedder(shown.documents),
            **self.params,
        )
        tell_passages(self.chat, shown.documents)
        if self.shown.clip:
            note(f"[{self.shown.clip.name}: {self.chat.frames_shown:,} frames of it are shown]")
        self.shown.clear()
        self.show(generation)

    def retry(self) -> None:
        """Answer the last message again."""
        self.show(self.chat.retry(**self.params))

    def edit(self, text: str) -> None:
        """Say ``text`` in place of the last message's, and show the answer."""
        self.show(self.chat.edit(text, **self.params))

    def show(self, generation: Generation) -> None:
        """Show an answer as it comes, and why it ended if the model did not end it.

        Ctrl-C ends the answer and is passed on.
        """
        try:
            stream(generation, output(plain=self.is_plain), hide_thinking=self._hides_thinking)
        except KeyboardInterrupt:
            if generation.is_finished:
                self._take(generation.result())
            raise
        self._take(generation.result())

    def _take(self, answer: Answer) -> None:
        self.last = answer
        self.used = answer.timings.prompt_tokens + len(answer.tokens)
        for line in logprob_lines(answer, self.model.tokenizer):
            note(line)
        if why := ended(answer, n_ctx=self.model.n_ctx):
            note(f"[{why}]")

    def set(self, name: str, value: Any) -> None:
        """Change a sampling setting for the answers to come; None takes the default. OptionError if it can't be."""
        params = {key: kept for key, kept in self.params.items() if key != name}
        if value is not None:
            params[name] = value
        _check(self.model, params)
        self.params = params

    def load(self, path: Path) -> None:
        """Go on with a saved conversation in place of this one. SessionError leaves this one as it is."""
        self.chat = self.model.load_chat(path, **self._chat_options)
        self.last, self.used = None, 0

    def change_model(self, name: str) -> None:
        """Go on with another model, which reads the messages with the next one.

        Its file is checked first. An error leaves the model as it was; where memory does not hold both, that one is
        closed before and opened again after an error.
        """
        artifact = open_artifact(locate(name))
        reopen, old, adapters = self._reopen, self.model, self._adapters
        is_beside = self._fits_beside(artifact)
        if not is_beside:
            note("the memory does not hold both models: this one is closed first")
            old.close()
        try:
            options = _for_another(self._opening, artifact)
            self._reopen = lambda: self._open(name, options)
            self._adapters = {}  # they are the old model's
            self._move(self._reopen())
        except BaseException:
            self._reopen, self._adapters = reopen, adapters
            if not is_beside:
                self._move(reopen())
            raise
        old.close()

    def _fits_beside(self, artifact: Artifact) -> bool:
        """Whether memory holds both models. OptionError if it does not even hold ``artifact`` alone."""
        mine = self.model.context.needed
        return fits_beside(artifact, _for_another(self._opening, artifact), devices.available_memory(), mine)

    def _move(self, model: Model) -> None:
        """Go on with ``model``; it is closed if it can't."""
        try:
            chat = self._new_chat(model)
        except BaseException:
            model.close()
            raise
        chat.messages = list(self.chat.messages)
        self.model, self.chat, self.used = model, chat, 0
        self.keep()  # before the old model is closed: from here on it is this one whose cache is saved

    def close(self) -> None:
        """Save the conversation, and close the model."""
        try:
            self._leaving.close()
        finally:
            self.retrieval.close()
            self.model.close()


def _check(model: Model, params: dict[str, Any]) -> None:
    """OptionError unless ``model`` can answer by ``params``."""
    sampling = model.sampling(params)
    check_biases(sampling, model.tokenizer)
    constraint(sampling, model.tokenizer)


def _for_another(opening: OpenOptions, artifact: Artifact) -> OpenOptions:
    """The options for another model: a vision tower, adapters or a template beside the first were meant for that.

    A model without a template of its own gets the one that was given.
    """
    options = options_here(opening)
    options.pop("vision", None)
    options.pop("adapters", None)
    if artifact.chat_template:
        options.pop("chat_template", None)
    return options


def _tell(shortened: Shortened) -> None:
    """Told also with --quiet: what the model no longer knows is no progress report."""
    note(f"[{shortened}]")
