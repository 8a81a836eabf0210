"""An answer as the scheduler brings it on: from logits to a token, which :mod:`answer_text` makes pieces of."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import TextTower
from edge_llama.errors import EdgeLlamaError
from edge_llama.prompts.thinking import ThinkingParser
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_grammar import CallGrammar
from edge_llama.prompts.tool_parser import ToolCallParser
from edge_llama.runtime.answer_text import AnswerText
from edge_llama.runtime.cache_entries import CacheOwner, Divergence
from edge_llama.runtime.encoders import ImageEmbeddings
from edge_llama.runtime.progress import Diverged, FinishReason, Progress, Timings
from edge_llama.runtime.request import Request
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import SamplingParams, check_biases
from edge_llama.sampling.sampler import LogitsRow, Sampler
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
        adapters: AdapterSet = (),
    ) -> None:
        """OptionError for params that the vocabulary can't follow, or a schema, regex or grammar that can't be.

        ``thinking`` tells thoughts from the answer. A constraint holds for what follows those that the prompt has the
        model begin with. ``parser`` takes the tool calls out of the text; None: all is text. With ``calls`` the answer
        is nothing but such. ``image_embeddings`` has what the prompt's negative ids stand for. For the others see
        :class:`Request`.
        """
        embed = image_embeddings.embed if image_embeddings else None
        super().__init__(prompt, owner=owner, embed=embed, deadline=deadline, adapters=adapters)
        check_biases(params, tower.tokenizer)
        self._constraint = constraint(params, tower.tokenizer, calls)
        self.progress = Progress(Timings(prompt_tokens=len(prompt)))
        self._text = AnswerText(
            tower.tokenizer,
            params,
            self.progress,
            thinking=thinking,
            parser=parser,
            has_form=self._constraint is not None,
        )
        self._tower = tower
        self._params = params
        self._closing: deque[int] = deque()
        """Tokens that end thoughts and come next."""
        self._sampler: Sampler | None = None
        self._choose: TokenChoice | None = None
        self.samples_apart = params.temperature != 0 or self._constraint is not None or params.logprobs is not None
        self.samples_apart &= not params.logits_processor  # the caller's functions are called by one thread
        self._since = time.perf_counter()
        """When what is going on now began: waiting, prefilling, generating."""

    def started(self, cached: int, divergence: Divergence | None) -> None:
        """The engine begins with the prompt."""
        timings = self.progress.timings
        timings.queued_seconds = self._lap()
        timings.cached_tokens = cached
        if divergence:
            texts = (_shown(self._tower.tokenizer, ids) for ids in (divergence.cached, divergence.wanted))
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
        if self._text.is_thinking and budget is not None and self.progress.timings.thinking_tokens >= budget:
            yield from self._close(choose)
        if not self._closing:
            yield from choose.forced()

    def _close(self, choose: TokenChoice) -> Iterator[int]:
        """The tokens that end thoughts: at once, or one by one where each needs its logits."""
        thinking = self._text.thinking
        if self._closing or not thinking:
            return
        if choose.needs_logits:
            self._closing.extend(thinking.closing)
            return
        for token in thinking.closing:
            choose.take(token)
            yield token

    def _is_end_of_thoughts(self, token: int, choose: TokenChoice) -> bool:
        """Whether the model would end its turn before what a constraint asks for."""
        is_end = self._text.is_thinking and self._constraint is not None and self._tower.tokenizer.is_end(token)
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
        constraint = None if self._text.is_thinking else self._constraint
        if constraint:
            self._text.thinking = None  # all of it is the answer
        return TokenChoice(
            self._sampler, self._params, constraint, self._tower.tokenizer, prompt, self._text.add_logprobs
        )

    def _take(self, token: int, room: int) -> FinishReason | None:
        """Put aside for the caller what is new; why the answer ends, if it does."""
        reason = self._text.take(token, room)
        if self._constraint is None or self._text.is_thinking:
            return reason
        if self._text.begins_answer and self._choose:
            self._choose.constrain(self._constraint)
        return "stop" if self._constraint.is_complete else reason

    def _conclude(self, reason: FinishReason) -> None:
        self._stop_clock()
        self._text.conclude(reason)

    def _stop_clock(self) -> None:
        if self._sampler:
            self.progress.timings.generation_seconds = self._lap()
            self._sampler.close()
            self._sampler = None

    def _lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def _shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(tokenizer.piece(token) for token in ids if token >= 0).decode("utf-8", "replace")
