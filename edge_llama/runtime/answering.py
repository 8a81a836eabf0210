"""An answer as the scheduler brings it on: from logits to a token, its text, and pieces for the caller."""

import codecs
import time
from collections import deque
from collections.abc import Iterator, Sequence

from edge_llama.backends.base import TextTower
from edge_llama.errors import EdgeLlamaError
from edge_llama.prompts.thinking import Split, ThinkingParser
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_grammar import CallGrammar
from edge_llama.prompts.tool_parser import Parsed, ToolCallParser
from edge_llama.runtime.cache_entries import CacheOwner, Divergence
from edge_llama.runtime.encoders import ImageEmbeddings
from edge_llama.runtime.progress import Diverged, FinishReason, Piece, Progress, Timings
from edge_llama.runtime.request import Request
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.sampling.params import SamplingParams, check_biases
from edge_llama.sampling.sampler import LogitsRow, Sampler
from edge_llama.sampling.stop_strings import StopStrings
from edge_llama.sampling.token_choice import TokenChoice


class Answering(Request):
    """Keeps no reference to whom it answers, who may leave."""

    def __init__(
        self,
        tower: TextTower,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        thinking: ThinkingParser | None = None,
        parser: ToolCallParser | None = None,
        calls: CallGrammar | None = None,
        owner: CacheOwner | None = None,
        image_embeddings: ImageEmbeddings | None = None,
        deadline: float | None = None,
    ) -> None:
        """OptionError for params that the vocabulary can't follow, or a schema, regex or grammar that can't be.

        ``thinking`` tells thoughts from the answer. A constraint holds for what follows those that the prompt has the
        model begin with. ``parser`` takes the tool calls out of the text; None: all is text. With ``calls`` the answer
        is nothing but such. ``image_embeddings`` has what the prompt's negative ids stand for. For the others see
        :class:`Request`.
        """
        super().__init__(
            prompt, owner=owner, embed=image_embeddings.embed if image_embeddings else None, deadline=deadline
        )
        check_biases(params, tower.tokenizer)
        self._constraint = constraint(params, tower.tokenizer, calls)
        self.progress = Progress(Timings(prompt_tokens=len(prompt)))
        self._tower = tower
        self._params = params
        self._thinking = thinking
        self._parser = parser
        self._closing: deque[int] = deque()
        """Tokens that end thoughts and come next."""
        self._sampler: Sampler | None = None
        self._choose: TokenChoice | None = None
        self.samples_apart = params.temperature != 0 or self._constraint is not None or params.logprobs is not None
        self.samples_apart &= not params.logits_processor  # the caller's functions are called by one thread
        self._since = time.perf_counter()
        """When what is going on now began: waiting, prefilling, generating."""
        self._stops = StopStrings(params.stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[int] = []
        """Tokens since the last piece."""
        self._logprobs = list[TokenLogprobs]()
        """Those of ``_pending``, and perhaps of an end token after them."""

    def started(self, cached: int, divergence: Divergence | None) -> None:
        """The engine begins with the prompt."""
        timings = self.progress.timings
        timings.queued_seconds = self._lap()
        timings.cached_tokens = cached
        if divergence:
            texts = (_text(self._tower.tokenizer, ids) for ids in (divergence.cached, divergence.wanted))
            timings.diverged = Diverged(divergence.position, *texts)

    def encoded(self, tiles: int, seconds: float) -> None:
        """Images were embedded."""
        self.progress.timings.tiles += tiles
        self.progress.timings.image_seconds += seconds

    def accept(self, row: LogitsRow, room: int) -> Sequence[int]:
        """The tokens that come next; none if the answer ends with them."""
        tokens: list[int] = []
        for token in self._next(row):
            if reason := self._take(token, room - len(tokens)):
                self._conclude(reason)
                return ()
            tokens.append(token)
        return tokens

    def send(self) -> None:
        """Give the caller the pieces that came."""
        self.progress.send()

    def _next(self, row: LogitsRow) -> Iterator[int]:
        """The tokens up to the next choice; what needs none comes before the first."""
        choose, is_chosen = self._choose, True
        if choose is None:
            choose = self._choose = self._begin()
            for token in self._forced(choose):
                is_chosen = False
                yield token
        if is_chosen:
            token = choose(row, self._closing.popleft() if self._closing else None)
            if self._is_end_of_thoughts(token, choose):
                yield from self._close(choose)
            else:
                yield token
            yield from self._forced(choose)

    def _forced(self, choose: TokenChoice) -> Iterator[int]:
        """The end of thoughts that became too long, and what a constraint leaves no choice about."""
        budget = self._params.thinking_budget
        if self._is_thinking and budget is not None and self.progress.timings.thinking_tokens >= budget:
            yield from self._close(choose)
        if not self._closing:
            yield from choose.forced()

    def _close(self, choose: TokenChoice) -> Iterator[int]:
        """The tokens that end thoughts: at once, or one by one where each needs its logits."""
        if self._closing or not self._thinking:
            return
        if choose.needs_logits:
            self._closing.extend(self._thinking.closing)
            return
        for token in self._thinking.closing:
            choose.take(token)
            yield token

    def _is_end_of_thoughts(self, token: int, choose: TokenChoice) -> bool:
        """Whether the model would end its turn before what a constraint asks for."""
        is_end = self._is_thinking and self._constraint is not None and self._tower.tokenizer.is_end(token)
        return is_end and not choose.needs_logits

    def finish(self, error: EdgeLlamaError | None) -> None:
        """An error, or the caller, ends the answer."""
        if error is None:
            self._conclude("cancelled")
        else:
            self._stop_clock()
            self.progress.finish(error)

    def _begin(self) -> TokenChoice:
        """The prompt is prefilled."""
        self.progress.timings.prompt_seconds = self._lap()
        prompt = [token for token in self.prompt if token >= 0]
        self._sampler = self._tower.sampler(self._params, prompt)
        constraint = None if self._is_thinking else self._constraint
        if constraint:
            self._thinking = None  # all of it is the answer
        return TokenChoice(
            self._sampler, self._params, constraint, self._tower.tokenizer, prompt, self._logprobs.append
        )

    def _take(self, token: int, room: int) -> FinishReason | None:
        """Put aside for the caller what is new; why the answer ends, if it does."""
        if self._tower.tokenizer.is_end(token):
            return "length" if self._is_thinking and self._constraint else "stop"
        timings = self.progress.timings
        timings.generated_tokens += 1
        self._pending.append(token)
        text, is_stopped = "", False
        if self._parser and token in self._parser.tags and not self._is_thinking:
            if self._thinking:
                self._put(self._parse(self._stops.feed(self._thinking.finish().text)[0]))
            self._put(self._parse(self._flushed()))
            self._put(self._parser.tag(token))
        elif self._thinking:
            text, is_stopped = self._stops.feed(self._think(token, self._thinking))
        else:
            text, is_stopped = self._stops.feed(self._decoder.decode(self._tower.tokenizer.piece(token)))
        self._put(self._parse(text))
        if is_stopped:
            self.progress.stop_string = self._stops.reached
            self._decoder.reset()
            return "stop"
        if self._is_complete:
            return "stop"
        return "length" if timings.generated_tokens == self._params.max_tokens or room <= 0 else None

    @property
    def _is_complete(self) -> bool:
        """Whether nothing can follow, or nothing is wanted."""
        if self._parser and self._parser.is_complete:
            return True
        return self._constraint is not None and not self._is_thinking and self._constraint.is_complete

    @property
    def _is_thinking(self) -> bool:
        return self._thinking is not None and self._thinking.is_thinking

    def _think(self, token: int, thinking: ThinkingParser) -> str:
        """Give the caller what the token adds to the thoughts; what it adds to the answer."""
        was_thinking = thinking.is_thinking
        if token in thinking.tags:
            split = thinking.feed(self._decoder.decode(b"", final=True) + thinking.tags[token])
        else:
            split = thinking.feed(self._decoder.decode(self._tower.tokenizer.piece(token)))
        self.progress.timings.thinking_tokens += thinking.is_thinking or was_thinking
        if split.thinking:
            self.progress.put(self._piece(Parsed(), thinking=split.thinking))
        if was_thinking and not thinking.is_thinking and self._constraint and self._choose:
            self._choose.constrain(self._constraint)
            return ""  # what the closer's last token has behind it is no part of what must come
        return split.text

    def _conclude(self, reason: FinishReason) -> None:
        self._stop_clock()
        # What was held back: an unfinished character's mark, the beginning of a tag, a stop string or a tool call.
        split = self._last_thoughts()
        rest = self._parse(self._stops.feed(split.text)[0] + self._flushed())
        end = self._parser.finish() if self._parser else Parsed()
        calls = rest.calls + end.calls
        if reason == "stop" and (calls or any(piece.tool_calls for piece in self.progress.pieces)):
            reason = "tool_calls"
        self.progress.notes = tuple(self._parser.notes) if self._parser else ()
        self.progress.finish(self._piece(Parsed(rest.text + end.text, calls), reason, split.thinking))

    def _last_thoughts(self) -> Split:
        if not self._thinking:
            return Split()
        split, end = self._thinking.feed(self._decoder.decode(b"", final=True)), self._thinking.finish()
        return Split(split.thinking + end.thinking, split.text + end.text)

    def _stop_clock(self) -> None:
        if self._sampler:
            self.progress.timings.generation_seconds = self._lap()
            self._sampler.close()
            self._sampler = None

    def _lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before

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


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(tokenizer.piece(token) for token in ids if token >= 0).decode("utf-8", "replace")
