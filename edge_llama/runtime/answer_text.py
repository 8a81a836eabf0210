"""Tokens become pieces for the caller, wherever they were chosen: text, thoughts, tool calls, and why it ended."""

import codecs
from collections.abc import Sequence

from edge_llama.prompts.thinking import Split, ThinkingParser
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_parser import Parsed, ToolCallParser
from edge_llama.runtime.progress import FinishReason, Piece, Progress
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.stop_strings import StopStrings


class AnswerText:
    """The text of one answer as its tokens come; one thread at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        progress: Progress,
        *,
        thinking: ThinkingParser | None = None,
        parser: ToolCallParser | None = None,
        has_form: bool = False,
    ) -> None:
        """What it makes goes to ``progress``. ``thinking`` tells thoughts from the answer, ``parser`` takes calls out.

        ``has_form``: what follows the thoughts must fit a schema, regex or grammar, or be calls.
        """
        self.progress = progress
        self.thinking = thinking
        self.has_form = has_form
        self.begins_answer = False
        """Whether thoughts ended with the last token, and what comes next must fit the form."""
        self._tokenizer = tokenizer
        self._max_tokens = params.max_tokens
        self._parser = parser
        self._stops = StopStrings(params.stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[int] = []
        """Tokens since the last piece."""
        self._logprobs = list[TokenLogprobs]()
        """Those of ``_pending``, and perhaps of an end token after them."""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self.thinking is not None and self.thinking.is_thinking

    def add_logprobs(self, entry: TokenLogprobs) -> None:
        """What is known of the token that comes next, or has just been chosen."""
        self._logprobs.append(entry)

    def take(self, token: int, room: int) -> FinishReason | None:
        """Put aside for the caller what a token adds; why the answer ends, if it does.

        ``room``: how many tokens the context holds, this one among them.
        """
        self.begins_answer = False
        if self._tokenizer.is_end(token):
            return self._end
        timings = self.progress.timings
        timings.generated_tokens += 1
        self._pending.append(token)
        if reason := self._add(token, self._tokenizer.piece(token)):
            return reason
        return "length" if timings.generated_tokens == self._max_tokens or room <= 0 else None

    def take_text(self, text: str, tokens: Sequence[int]) -> FinishReason | None:
        """The same where whoever chose the tokens tells their text, and only of some which they are.

        The last of ``tokens`` is the last of ``text``.
        """
        self.begins_answer = False
        data = text.encode("utf-8", "replace")
        if not tokens:
            return self._add(None, data)
        if data and self._is_tag(tokens[-1]):
            if reason := self._add(None, data):
                return reason
            data = b""
        is_end = self._tokenizer.is_end(tokens[-1])
        known = tokens[:-1] if is_end else tokens
        self.progress.timings.generated_tokens += len(known)
        self._pending += known
        reason = self._add(tokens[-1], data) if data or not is_end else None
        return reason or (self._end if is_end else None)

    def conclude(self, reason: FinishReason) -> None:
        """The answer ends. What was held back is what it is: a mark of a character, a tag, a stop string or a call."""
        split = self._last_thoughts()
        rest = self._parse(self._stops.feed(split.text)[0] + self._flushed())
        end = self._parser.finish() if self._parser else Parsed()
        calls = rest.calls + end.calls
        if reason == "stop" and (calls or any(piece.tool_calls for piece in self.progress.pieces)):
            reason = "tool_calls"
        self.progress.notes = tuple(self._parser.notes) if self._parser else ()
        self.progress.finish(self._piece(Parsed(rest.text + end.text, calls), reason, split.thinking))

    @property
    def _end(self) -> FinishReason:
        """What an end token means: an answer that must have a form has not begun within thoughts."""
        return "length" if self.is_thinking and self.has_form else "stop"

    def _is_tag(self, token: int) -> bool:
        return bool((self._parser and token in self._parser.tags) or (self.thinking and token in self.thinking.tags))

    def _add(self, token: int | None, data: bytes) -> FinishReason | None:
        """The token, if it is known, and the bytes that it stands for."""
        text, is_stopped = "", False
        if self._parser and token in self._parser.tags and not self.is_thinking:
            assert token is not None  # noqa: S101 - it is a tag
            if self.thinking:
                self._put(self._parse(self._stops.feed(self.thinking.finish().text)[0]))
            self._put(self._parse(self._flushed()))
            self._put(self._parser.tag(token))
        elif self.thinking:
            text, is_stopped = self._stops.feed(self._think(token, data, self.thinking))
        else:
            text, is_stopped = self._stops.feed(self._decoder.decode(data))
        self._put(self._parse(text))
        if is_stopped:
            self.progress.stop_string = self._stops.reached
            self._decoder.reset()
            return "stop"
        return "stop" if self._parser and self._parser.is_complete else None

    def _think(self, token: int | None, data: bytes, thinking: ThinkingParser) -> str:
        """Give the caller what is added to the thoughts; what is added to the answer."""
        was_thinking = thinking.is_thinking
        if token in thinking.tags:
            assert token is not None  # noqa: S101 - it is a tag
            split = thinking.feed(self._decoder.decode(b"", final=True) + thinking.tags[token])
        else:
            split = thinking.feed(self._decoder.decode(data))
        self.progress.timings.thinking_tokens += thinking.is_thinking or was_thinking
        if split.thinking:
            self.progress.put(self._piece(Parsed(), thinking=split.thinking))
        if was_thinking and not thinking.is_thinking and self.has_form:
            self.begins_answer = True
            return ""  # what the closer's last token has behind it is no part of what must come
        return split.text

    def _last_thoughts(self) -> Split:
        if not self.thinking:
            return Split()
        split, end = self.thinking.feed(self._decoder.decode(b"", final=True)), self.thinking.finish()
        return Split(split.thinking + end.thinking, split.text + end.text)

    def _flushed(self) -> str:
        """What was held back as an unfinished character or the beginning of a stop string: nothing completes it."""
        return self._stops.feed(self._decoder.decode(b"", final=True))[0] + self._stops.flush()

    def _parse(self, text: str) -> Parsed:
        return self._parser.feed(text) if self._parser else Parsed(text)

    def _put(self, parsed: Parsed) -> None:
        if parsed.text or parsed.calls:
            self.progress.put(self._piece(parsed))

    def _piece(self, parsed: Parsed, reason: FinishReason | None = None, thinking: str = "") -> Piece:
        logprobs = tuple(self._logprobs[: len(self._pending)])
        piece = Piece(parsed.text, tuple(self._pending), logprobs, reason, parsed.calls, thinking)
        self._pending.clear()
        self._logprobs.clear()
        return piece
