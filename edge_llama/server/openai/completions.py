"""``/v1/completions``."""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from edge_llama.generation import Answer, Piece, Timings
from edge_llama.model import Model
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.server.asking import Answers, Ask, Text
from edge_llama.server.events import Event, finish_reason
from edge_llama.server.failures import ApiError
from edge_llama.server.handling import Here, answer, model_name
from edge_llama.server.openai.chat import fingerprint
from edge_llama.server.openai.completion_fields import CompletionFields
from edge_llama.server.openai.completion_objects import Completion
from edge_llama.server.openai.given_texts import texts_of, tokens_of
from edge_llama.server.openai.objects import DONE, responses, usage
from edge_llama.server.openai.token_texts import TokenTexts, finite

router = APIRouter()
_MAX_TOKENS = 16
"""OpenAI's default."""


@router.post("/v1/completions", responses=responses(Completion, streamed=Completion))
async def completions(request: Request, fields: CompletionFields, server: Here) -> Response:
    """Continue texts as they stand."""
    if fields.echo and fields.logprobs is not None:
        raise ApiError(400, "echo and logprobs don't go together: a prompt has no log-probabilities", param="logprobs")
    if fields.echo and fields.allow_control_tokens:
        raise ApiError(
            400, "echo and allow_control_tokens don't go together: control tokens have no text", param="echo"
        )
    texts: list[Text] = []
    token_texts: TokenTexts | None = None
    most = server.settings.limits.max_tokens or _MAX_TOKENS

    def ask(model: Model) -> Ask:
        nonlocal token_texts
        token_texts = None if fields.logprobs is None else _token_texts(fields, model)
        texts.extend(_prompts(fields, model))
        return Ask(texts[0], _options(fields, most), fields.n or 1, tuple(texts[1:]))

    return await answer(
        request,
        fields,
        model_name(server, fields.model),
        ask,
        lambda answers: CompletionWriter.of(fields, texts, token_texts, answers),
        is_streamed=bool(fields.stream),
    )


def _prompts(fields: CompletionFields, model: Model) -> Sequence[Text]:
    if fields.allow_control_tokens:
        return tokens_of(fields.prompt, "prompt", model.tokenizer)
    return texts_of(fields.prompt, "prompt", model.tokenizer, model.n_ctx)


def _token_texts(fields: CompletionFields, model: Model) -> TokenTexts:
    return TokenTexts.of(model.tokenizer, as_ids=bool(fields.return_tokens_as_token_ids))


def _options(fields: CompletionFields, most: int) -> dict[str, Any]:
    options = {**fields.options(), "max_tokens": fields.max_tokens or min(_MAX_TOKENS, most)}
    if fields.json_schema is not None:
        options["json_schema"] = fields.json_schema
    return options if fields.logprobs is None else {**options, "logprobs": fields.logprobs}


@dataclass(slots=True)
class CompletionWriter:
    """Tells of answers as completions."""

    model: str
    fingerprint: str
    choices: int
    """To each prompt."""
    echoed: Sequence[str]
    """The prompts, if their text stands before the answers; else nothing."""
    texts: TokenTexts | None
    """None: log-probabilities were not asked for."""
    tells_usage: bool
    tells_tokens: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=dict)
    """Characters of each answer's tokens so far."""

    @classmethod
    def of(
        cls, fields: CompletionFields, prompts: Sequence[Text], texts: TokenTexts | None, answers: Answers
    ) -> "CompletionWriter":
        """For the answers to a request."""
        model = answers.lease.model
        tells_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        echoed = [each for each in prompts if isinstance(each, str)] if fields.echo else []
        tells_tokens = bool(fields.return_token_ids)
        return cls(answers.lease.name, fingerprint(model), fields.n or 1, echoed, texts, tells_usage, tells_tokens)

    def begin(self, timings: Timings) -> Iterable[Event]:  # noqa: ARG002 - the Protocol's
        """The prompts, if they are to be there."""
        for at, prompt in enumerate(self.echoed):
            for choice in range(self.choices):
                yield self._chunk(at * self.choices + choice, prompt)

    def piece(self, choice: int, piece: Piece) -> Iterable[Event]:
        """What is new; an end of its own."""
        logprobs = self._logprobs(choice, piece.logprobs) if piece.logprobs else None
        tokens = piece.token_ids if self.tells_tokens else ()
        if piece.text or logprobs or tokens:
            yield self._chunk(choice, piece.text, logprobs, tokens=tokens)
        if piece.finish_reason:
            yield self._chunk(choice, "", reason=finish_reason(piece.finish_reason))

    def end(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """The usage, if it was asked for."""
        if self.tells_usage:
            yield Event({**self._head(), "choices": [], "usage": usage(answers, self.choices)})
        yield DONE

    def failed(self, error: ApiError) -> Iterable[Event]:
        """As OpenAI's clients know it."""
        yield Event(error.openai())

    def body(self, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """A :class:`~edge_llama.server.openai.completion_objects.Completion`."""
        choices = []
        for index, each in enumerate(answers):
            text = self.echoed[index // self.choices] + each.text if self.echoed else each.text
            logprobs = self._logprobs(index, each.logprobs) if self.texts else None
            choices.append(self._choice(index, text, logprobs, finish_reason(each.finish_reason), each.tokens))
        return {**self._head(), "choices": choices, "usage": usage(answers, self.choices)}

    def _logprobs(self, choice: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if self.texts is None:
            return None
        tokens = [self.texts.text(entry.token_id) for entry in entries]
        offsets = [self._offsets.get(choice, 0)]
        for entry in entries:
            data = self.texts.data(entry.token_id) or b""
            offsets.append(offsets[-1] + len(data.decode("utf-8", "ignore")))
        self._offsets[choice] = offsets.pop()
        tops = [{self.texts.text(each.token_id): finite(each.logprob) for each in entry.top} for entry in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": offsets,
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(
        self, index: int, text: str, logprobs: object, reason: str | None, tokens: Sequence[int]
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**choice, "token_ids": list(tokens)} if self.tells_tokens else choice

    def _chunk(
        self,
        choice: int,
        text: str,
        logprobs: object = None,
        reason: str | None = None,
        tokens: Sequence[int] = (),
    ) -> Event:
        chunk = {**self._head(), "choices": [self._choice(choice, text, logprobs, reason, tokens)]}
        return Event({**chunk, "usage": None} if self.tells_usage else chunk)
