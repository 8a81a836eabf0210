"""A model whose weights are on a server, as any other: what a server can't do is refused by name.

Prompts are rendered and cut into tokens here, as for a model that runs here, and token ids are sent: so no text of a
conversation becomes a control token, whatever the server would make of it.
"""

import logging
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import Choice, Placement, Setting
from edge_llama.backends.registry import remote_engine
from edge_llama.backends.token_stream import TokenStream
from edge_llama.chat import Sessions
from edge_llama.errors import InputError, OptionError, SessionError
from edge_llama.files.artifact import Pooling, VisionArtifact
from edge_llama.generation import AnswerParts, Generation
from edge_llama.model import Model, path_of
from edge_llama.planning.adapters import AskedAdapters
from edge_llama.planning.memory import ContextSize
from edge_llama.planning.options import OpenOptions, check_place, checked
from edge_llama.prompts.messages import Message
from edge_llama.prompts.model_template import template_of
from edge_llama.prompts.tools import Tool, Tools
from edge_llama.remote.answer import RemoteAnswer
from edge_llama.remote.artifact import RemoteArtifact, described
from edge_llama.remote.event_loop import EventLoop, Job
from edge_llama.remote.vocabulary import OpenVocabulary, open_vocabulary
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.embeddings import PoolingChoice
from edge_llama.runtime.encoders import ImageEncoder
from edge_llama.runtime.stats import Stats
from edge_llama.sampling.params import SamplingParams

_log = logging.getLogger("edge_llama")
_HERE = "open the model itself, on a machine that holds it"


class RemoteModel(Model):
    """See :func:`edge_llama.open` with a URL."""

    artifact: RemoteArtifact

    def __init__(self, url: str, /, **options: Unpack[OpenOptions]) -> None:
        """See :func:`edge_llama.open`."""
        given = checked(options)
        check_place(given, is_remote=True)
        vocabulary = _vocabulary(given)
        self._loop = EventLoop()
        try:
            self._stream = stream = self._loop.call(_connected(url, given, vocabulary))
            self._loop.at_close(stream.close)
            self._describe(stream, vocabulary, given)
        except BaseException:
            self._loop.close()
            raise
        self._finalizer = weakref.finalize(self, self._loop.close)
        for text in vocabulary.warnings:
            _log.warning("%s: %s", vocabulary.path, text)
        _log.info("%s: %s; %s", self.artifact.name, self.context, self.placement)

    def _describe(self, stream: TokenStream, vocabulary: OpenVocabulary, given: OpenOptions) -> None:
        self.artifact = described(stream, vocabulary)
        self._template = template_of(self.artifact, given.get("chat_template"))
        self.tokenizer = vocabulary.tokenizer
        self.identity = self.artifact.identity()
        reason = "as asked" if given.get("n_ctx") else "as the server says"
        self.context = ContextSize(stream.n_ctx, 0, reason, 0, 0)
        self.choice = Choice(Setting(None, "-", 0), "the server's own")
        self.placement = Placement(0, f"served by {stream.engine}", f"remote {stream.url}")
        self.vision_placement = None
        self.threads = None
        self.adapters = {}
        self._is_deterministic = False
        self._counts = _Counts()

    @property
    def location(self) -> str:
        """The server's URL."""
        return self.artifact.url

    @property
    def vision(self) -> VisionArtifact | None:
        """None: no pictures go there."""
        return None

    @cached_property
    def sessions(self) -> Sessions:
        """What there is of chats on the server: nothing that could be told or kept."""
        return _NoSessions(self.artifact.url)

    def require_vision(self) -> ImageEncoder:
        """InputError: pictures are embeddings, and token ids alone are sent."""
        raise InputError(f"{self.artifact.url}: no pictures can be sent to a model on a server", remedy=_HERE)

    def embed(self, texts: Sequence[str], pooling: Pooling | None = None) -> NDArray[np.float32]:  # noqa: ARG002 - the base's
        """InputError: a server that generates gives no hidden states."""
        raise self._no_embeddings()

    def pooling(self, asked: Pooling | None = None) -> PoolingChoice:  # noqa: ARG002 - the base's
        """InputError as :meth:`embed`."""
        raise self._no_embeddings()

    def prefetch(
        self,
        messages: Sequence[Message],  # noqa: ARG002 - the base's
        owner: CacheOwner,  # noqa: ARG002
        *,
        tools: Iterable[Tool] | Tools | None = None,  # noqa: ARG002
        template_variables: Mapping[str, Any] | None = None,  # noqa: ARG002
        adapters: AskedAdapters | None = None,  # noqa: ARG002
    ) -> int:
        """0: what the server still holds of a conversation is not known."""
        return 0

    def tokens_to_prefill(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """All of them, for all that is known here."""
        self.adapter_set(adapters)
        return self.count_tokens(messages, tools=tools, template_variables=template_variables)

    def stats(self) -> Stats:
        """What was asked of the server and came back. Cells, and who else waits there, are not known: 0."""
        return self._counts.stats()

    def _no_embeddings(self) -> InputError:
        return InputError(f"{self.artifact.url}: texts can't be embedded by a model on a server", remedy=_HERE)

    def _preparing(self) -> AbstractContextManager[None]:
        self._loop.check_process()
        return nullcontext()

    def _begun(self, tokens: Sequence[int], sampling: SamplingParams, **parts: Unpack[AnswerParts]) -> Generation:
        if parts.get("calls"):
            raise OptionError(
                f"tool_choice that makes calls be written is not to be had of {self.artifact.url}",
                remedy="leave it out: the model then decides",
            )
        answer = RemoteAnswer(
            self._stream,
            self.tokenizer,
            tokens,
            sampling,
            thinking=parts.get("thinking"),
            parser=parts.get("parser"),
            deadline=parts.get("deadline"),
        )
        job = self._loop.begin(self._counts.counted(answer), answer.settle)
        return Generation(answer.progress, job, on_finish=parts.get("on_finish"), keep_alive=self)


def _vocabulary(given: OpenOptions) -> OpenVocabulary:
    """Before anybody is asked. OptionError if none was given."""
    tokenizer = given.get("tokenizer")
    if tokenizer is None:
        raise OptionError(
            "which tokenizer does the model on the server have? Its prompts are made here",
            remedy="give its checkpoint's folder, or a .gguf file of the same model: tokenizer= (--tokenizer)",
        )
    return open_vocabulary(str(path_of(tokenizer)))


async def _connected(url: str, given: OpenOptions, vocabulary: OpenVocabulary) -> TokenStream:
    return await remote_engine().connect(
        url,
        model=given.get("remote_model"),
        vocabulary=vocabulary.tokenizer,
        n_ctx=given.get("n_ctx"),
        key_variable=given.get("api_key_variable"),
    )


class _Counts:
    """What adds up over the time. Written in the event loop's thread."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0
        self._seconds = 0.0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def counted(self, answer: RemoteAnswer) -> Callable[[Job], Coroutine[Any, Any, None]]:
        """What brings the answer to its end, and counts it."""

        async def run(job: Job) -> None:
            now = time.perf_counter()
            self._since = self._since if self._running else now
            self._running += 1
            try:
                await answer.run(lambda: job.is_cancelled)
            finally:
                self._running -= 1
                self._seconds += 0.0 if self._running else time.perf_counter() - self._since
                timings = answer.progress.timings
                self._prompt_tokens += timings.prompt_tokens - timings.cached_tokens
                self._generated_tokens += timings.generated_tokens

        return run

    def stats(self) -> Stats:
        """The numbers so far."""
        return Stats(
            running=self._running,
            max_running=0,
            queued=0,
            used_cells=0,
            cells=0,
            cached_bytes=0,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            seconds=self._seconds,
        )


class _NoSessions:
    """See :class:`edge_llama.chat.Sessions`: a server keeps what it likes, and is not asked for it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """The server's own cache finds what two conversations have in common, if it has one."""

    def tag(self, owner: CacheOwner, conversation: str) -> None:
        """Nothing of it is kept here."""

    def forget(self, conversation: str) -> None:
        """Nothing of it was kept here."""

    def store(self, owner: CacheOwner) -> None:
        """There is nothing to write."""

    def why_not_kept(self, conversation: str) -> str | None:  # noqa: ARG002 - the Protocol's
        """What a chat that goes on is told."""
        return f"what {self._url} still has of it is not known"

    def save(self, path: str | os.PathLike[str], messages: Sequence[Message], owner: CacheOwner) -> None:  # noqa: ARG002
        """SessionError: a session file holds a KV cache, which is on the server."""
        raise self._refusal(path)

    def resume(
        self,
        path: str | os.PathLike[str],
        owner: CacheOwner,  # noqa: ARG002
        adapters: AdapterSet = (),  # noqa: ARG002
    ) -> tuple[tuple[Message, ...], str | None]:
        """SessionError as :meth:`save`."""
        raise self._refusal(path)

    def _refusal(self, path: str | os.PathLike[str]) -> SessionError:
        return SessionError(
            f"{os.fspath(path)}: a session file holds a KV cache, which is on the server ({self._url})",
            remedy="the history keeps the messages (edge-llama history), and so can your program: Chat.messages",
        )
