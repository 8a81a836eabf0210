"""An answer whose tokens a server samples: they become the same pieces as those that are sampled here."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

from edge_llama.backends.token_stream import Sampled, TokenStream, Usage
from edge_llama.errors import DeadlineError, EdgeLlamaError, EngineError, OptionError, RemoteError
from edge_llama.prompts.thinking import ThinkingParser
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_parser import ToolCallParser
from edge_llama.runtime.answer_text import AnswerText
from edge_llama.runtime.progress import FinishReason, Progress, Timings
from edge_llama.runtime.request import as_engine_error
from edge_llama.sampling.constraint import check_form
from edge_llama.sampling.params import SamplingParams, check_biases

_SPARE = 16
"""Events that a server may send beside those with a token."""


class RemoteAnswer:
    """One answer. All but the first call is for the event loop's thread.

    Thoughts that must end, or after which a form begins, end one request and begin another: its prompt is all that was
    said until then. The server has that in its cache, if it has one.
    """

    def __init__(
        self,
        stream: TokenStream,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        thinking: ThinkingParser | None = None,
        parser: ToolCallParser | None = None,
        deadline: float | None = None,
    ) -> None:
        """OptionError for params that the vocabulary can't follow, or that the server doesn't have.

        ``deadline`` is by time.monotonic; the others are :class:`AnswerText`'s.
        """
        stream.check(params)
        check_biases(params, tokenizer)
        has_form = check_form(params)
        self.progress = Progress(Timings(prompt_tokens=len(prompt)))
        self._text = AnswerText(tokenizer, params, self.progress, thinking=thinking, parser=parser, has_form=has_form)
        if has_form and not self._text.is_thinking:
            self._text.thinking = None  # all of it is the answer
        self._check_thoughts(stream, params)
        self._stream = stream
        self._tokenizer = tokenizer
        self._params = params
        self._tokens = list(prompt)
        """Those of the prompt and of the answer so far."""
        self._n_prompt = len(prompt)
        self._is_told_whole = True
        """Whether ``_tokens`` are all that there are."""
        self._events = 0
        """Parts of text that came without all tokens."""
        self._formed = bytearray()
        """What must have a form."""
        self._has_closed = False
        """Whether thoughts were ended here since the last request."""
        self._deadline = deadline
        self._since = time.perf_counter()
        self._has_begun = False
        self._is_cancelled: Callable[[], bool] = lambda: False

    def _check_thoughts(self, stream: TokenStream, params: SamplingParams) -> None:
        """OptionError for what must be asked for anew within an answer, of a server that doesn't tell all tokens."""
        if stream.tells_tokens or not self._text.thinking:
            return
        given = {"thinking_budget": params.thinking_budget, "a form after thoughts": self._text.has_form or None}
        if name := next((name for name, value in given.items() if value), None):
            raise OptionError(
                f"{name} is not to be had of {stream.url} ({stream.engine}): it does not tell all tokens",
                remedy="leave it out",
            )

    async def run(self, is_cancelled: Callable[[], bool]) -> None:
        """Bring the answer to its end, whatever comes.

        ``is_cancelled`` is asked after each part: where several came at once nothing else tells in between.
        """
        self._is_cancelled = is_cancelled
        try:
            async with asyncio.timeout(self._seconds_left()):
                reason = await self._answered()
            self._check_form(reason)
            self._conclude(reason)
        except TimeoutError:
            self._fail(DeadlineError())
        except asyncio.CancelledError:
            self.settle()
        except Exception as error:
            self._fail(as_engine_error(error))

    def settle(self) -> None:
        """It is over, perhaps before it began."""
        if self.progress.end is None:
            self._conclude("cancelled")

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def _answered(self) -> FinishReason:
        while True:
            if reason := self._close_thoughts() or await self._asked():
                return reason

    async def _asked(self) -> FinishReason | None:
        """One request; why the answer ends, or None if another must go on."""
        if (most := self._most()) <= 0:
            return "length"
        if self._has_begun and not self._is_told_whole:
            raise RemoteError(self._stream.url, "does not tell all tokens, so the answer can't go on after thoughts")
        has_form = self._text.has_form and not self._text.is_thinking
        self._formed.clear()
        self._has_closed = False
        new = self._stream.tokens(self._tokens, self._params, most, has_form=has_form)
        async with aclosing(new):
            async for sampled in new:
                self._begin()
                reason = self._take(sampled)
                self.progress.send()
                if self._is_cancelled():
                    await asyncio.Event().wait()  # until it is told
                if reason or self._must_ask_anew:
                    return reason
        raise EngineError("the server's answer has no end")

    @property
    def _generated(self) -> int:
        """Tokens of the answer so far, as far as they are known."""
        return len(self._tokens) - self._n_prompt

    def _most(self) -> int:
        """How many tokens may follow."""
        limits = [self._stream.n_ctx - len(self._tokens)]
        if self._stream.most_tokens is not None:
            limits.append(self._stream.most_tokens)
        if self._params.max_tokens is not None:
            limits.append(self._params.max_tokens - self._generated)
        return min(limits)

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.progress.timings.prompt_seconds = self._lap()

    @property
    def _must_ask_anew(self) -> bool:
        return self._has_closed or self._text.begins_answer or self._thinks_too_long

    @property
    def _thinks_too_long(self) -> bool:
        budget = self._params.thinking_budget
        spent = self.progress.timings.thinking_tokens
        return budget is not None and self._text.is_thinking and spent >= budget

    def _close_thoughts(self) -> FinishReason | None:
        """Where they became too long: the tokens that end them, as if the model had written them."""
        if not self._thinks_too_long:
            return None
        return self._end_thoughts()

    def _end_thoughts(self) -> FinishReason | None:
        self._has_closed = True
        thinking = self._text.thinking
        for token in thinking.closing if thinking else ():
            if reason := self._add(token):
                return reason
        return "length" if self._text.is_thinking else None

    def _take(self, sampled: Sampled) -> FinishReason | None:
        """Put aside for the caller what is new; why the answer ends, if it does."""
        reason = self._take_text(sampled) if sampled.text is not None else self._take_tokens(sampled)
        self._count(sampled.usage, is_whole=sampled.text is None)
        is_whole_form = reason == "length" and sampled.end == "stop"  # nothing can follow its last token
        if (is_whole_form or reason is None) and not self._must_ask_anew and sampled.end:
            return self._ended(sampled.end)
        return reason

    def _take_tokens(self, sampled: Sampled) -> FinishReason | None:
        for at, token in enumerate(sampled.tokens):
            if sampled.logprobs:
                self._text.add_logprobs(sampled.logprobs[at])
            if self._tokenizer.is_end(token):
                return self._ended("stop")
            if (reason := self._add(token)) or self._must_ask_anew:
                return reason
        return None

    def _add(self, token: int) -> FinishReason | None:
        self._tokens.append(token)
        self._formed += self._tokenizer.piece(token)
        return self._text.take(token, self._stream.n_ctx - len(self._tokens))

    def _take_text(self, sampled: Sampled) -> FinishReason | None:
        self._is_told_whole = False
        for entry in sampled.logprobs:
            self._text.add_logprobs(entry)
        self._tokens += sampled.tokens
        self._formed += (sampled.text or "").encode("utf-8", "replace")
        self._events += 1
        if self._events > self._stream.n_ctx + _SPARE:
            raise RemoteError(self._stream.url, "sends more than the context holds")
        return self._text.take_text(sampled.text or "", sampled.tokens)

    def _ended(self, reason: FinishReason) -> FinishReason | None:
        """The server's end; None where thoughts must be followed by an answer that has a form."""
        if reason == "stop" and self._text.is_thinking and self._text.has_form:
            return self._end_thoughts()
        return reason

    def _count(self, usage: Usage | None, *, is_whole: bool) -> None:
        timings = self.progress.timings
        if usage is None:
            return
        if usage.cached_tokens is not None:
            timings.cached_tokens = min(usage.cached_tokens, timings.prompt_tokens)
        if usage.generated_tokens is not None and not is_whole:
            timings.generated_tokens = usage.generated_tokens

    def _check_form(self, reason: FinishReason) -> None:
        """EngineError for an answer that is whole and no JSON where a schema was asked for: it was not heeded."""
        if self._params.json_schema is None or reason != "stop" or self.progress.stop_string is not None:
            return
        try:
            json.loads(self._formed)
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                self._stream.url,
                "answered with what is no JSON although json_schema asks for it",
                remedy="see whether the server enforces schemas",
            ) from error

    def _conclude(self, reason: FinishReason) -> None:
        self._stop_clock()
        self._text.conclude(reason)

    def _fail(self, error: EdgeLlamaError) -> None:
        self._stop_clock()
        self.progress.finish(error)

    def _stop_clock(self) -> None:
        if self._has_begun:
            self.progress.timings.generation_seconds = self._lap()

    def _lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before
