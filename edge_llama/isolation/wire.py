"""How values of the API cross a pipe as JSON: messages, options, pieces, facts of an open model, errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from edge_llama.backends.base import Choice, Figure, Placement, Setting
from edge_llama.errors import OptionError
from edge_llama.generation import Diverged, Piece, Timings
from edge_llama.media.images import Image
from edge_llama.planning.memory import ContextSize
from edge_llama.prompts.attached import AttachedDocument
from edge_llama.prompts.messages import Message, ToolCall, as_json
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.sampling.params import SamplingParams

_TIMINGS = tuple(each.name for each in fields(Timings))
_SAMPLING = tuple(each.name for each in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class Facts:
    """What was decided when the child opened its model."""

    context: ContextSize
    choice: Choice
    placement: Placement
    vision_placement: Placement | None
    threads: int | None
    identity: str
    control_tokens: Mapping[str, int]
    special_texts: Mapping[str, str]
    bos: int | None

    def to_json(self) -> dict[str, Any]:
        """The inverse of :meth:`from_json`."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Facts":
        """What :meth:`to_json` gave."""
        choice, vision = data["choice"], data["vision_placement"]
        figures = (Figure(**each | {"setting": Setting(**each["setting"])}) for each in choice["figures"])
        return cls(
            **{
                **data,
                "context": ContextSize(**data["context"]),
                "choice": Choice(Setting(**choice["setting"]), choice["reason"], tuple(figures)),
                "placement": Placement.from_json(data["placement"]),
                "vision_placement": vision and Placement.from_json(vision),
            }
        )


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def messages_to_json(messages: Iterable[Message], images: list[Image]) -> list[dict[str, Any]]:
    """The messages; their images join ``images``, and a number stands for each."""
    return [_message_to_json(message, images) for message in messages]


def _message_to_json(message: Message, images: list[Image]) -> dict[str, Any]:
    content: list[str | int] = []
    for part in message.parts:
        if isinstance(part, Image):
            content.append(len(images))
            images.append(part)
        else:
            content.append(part)
    return {
        "role": message.role,
        "content": content,
        "tool_calls": [call.to_json() for call in message.tool_calls],
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "thinking": message.thinking,
        "documents": [document.to_json() for document in message.documents],
    }


def messages_from_json(data: Iterable[Mapping[str, Any]], images: Sequence[Image]) -> list[Message]:
    """The inverse of :func:`messages_to_json`."""
    return [
        Message(
            each["role"],
            [images[part] if isinstance(part, int) else part for part in each["content"]],
            map(ToolCall.from_json, each["tool_calls"]),
            each["tool_call_id"],
            each["name"],
            each["thinking"],
            map(AttachedDocument.from_json, each["documents"]),
        )
        for each in data
    ]


def options_to_json(options: Mapping[str, Any]) -> tuple[dict[str, Any], SamplingParams]:
    """Options of an answer that were given, checked as far as they are sampling's, and the params they make.

    OptionError for one that is out of range, or can't leave this process: ``logits_processor``, what JSON has not.
    """
    sampling = {name: value for name, value in options.items() if name in _SAMPLING}
    params = SamplingParams.from_options(sampling)
    if params.logits_processor:
        raise OptionError(
            "logits_processor is a Python function: it can't be called in the model's own process",
            remedy="open the model without isolate=True (--isolate)",
        )
    given = {name: getattr(params, name) for name in sampling if name != "logits_processor"}
    if given.get("logit_bias") is not None:
        given["logit_bias"] = list(given["logit_bias"].items())  # its keys are numbers
    others = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if name not in _SAMPLING
    }
    return {name: as_json(value, name) for name, value in {**given, **others}.items()}, params


def options_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`options_to_json`."""
    bias = data.get("logit_bias")
    return {**data, "logit_bias": dict(bias)} if bias is not None else dict(data)


def piece_to_json(piece: Piece, timings: Timings) -> list[Any]:
    """A piece, without its logprobs but with their number, and how far the timings are."""
    calls = [call.to_json() for call in piece.tool_calls]
    measured = [_plain(getattr(timings, name)) for name in _TIMINGS]
    return [piece.text, piece.token_ids, len(piece.logprobs), piece.finish_reason, calls, piece.thinking, measured]


def piece_from_json(data: Sequence[Any], timings: Timings, logprobs: tuple[TokenLogprobs, ...]) -> Piece:
    """The inverse of :func:`piece_to_json`; ``timings`` are brought up to date."""
    text, tokens, _, reason, calls, thinking, measured = data
    for name, value in zip(_TIMINGS, measured, strict=True):
        setattr(timings, name, Diverged(**value) if name == "diverged" and value else value)
    return Piece(text, tuple(tokens), logprobs, reason, tuple(map(ToolCall.from_json, calls)), thinking)
