"""What answers took and what is to be said of them: the extension ``edge_llama`` of every API's usage."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from edge_llama.generation import Answer, Timings


class DivergedAt(BaseModel):
    """Where a prompt left what was in the cache."""

    position: int = Field(description="The first token of the prompt that the cache had not, counted from 0.")
    cached: str = Field(description="What stood there in the cache: the text of the next few tokens.")
    wanted: str = Field(description="What stands there in the prompt.")


class Measured(BaseModel):
    """What answers took: those of one request together."""

    cached_tokens: int = Field(description="Tokens of all prompts that the KV cache already held.")
    diverged: DivergedAt | None = Field(description="Why it held no more of the first, if something like it was there.")
    seconds: float = Field(description="From the request's beginning in the engine's queue to the answer's end.")
    prompt_seconds: float = Field(description="Of them, those that reading a prompt took.")
    tokens_per_second: float = Field(description="How fast the answer was written, all answers together.")
    notes: list[str] = Field(description="Why a part of the text that looks like a tool call is none.")


def measured(answers: Sequence[Answer], choices: int = 1) -> dict[str, Any]:
    """A :class:`Measured` of the answers to one request; each prompt has so many, which come one after another."""
    prompts = [answer.timings for answer in answers[::choices]]
    diverged = prompts[0].diverged
    place = diverged and {"position": diverged.position, "cached": diverged.cached, "wanted": diverged.wanted}
    writing = max(answer.timings.generation_seconds for answer in answers)
    tokens = sum(answer.timings.generated_tokens for answer in answers)
    return {
        "cached_tokens": sum(timings.cached_tokens for timings in prompts),
        "diverged": place,
        "seconds": round(max(_seconds(answer.timings) for answer in answers), 6),
        "prompt_seconds": round(max(timings.prompt_seconds for timings in prompts), 6),
        "tokens_per_second": round(tokens / writing, 3) if writing else 0.0,
        "notes": list(dict.fromkeys(note for answer in answers for note in answer.notes)),
    }


def _seconds(timings: Timings) -> float:
    return timings.queued_seconds + timings.prompt_seconds + timings.generation_seconds
