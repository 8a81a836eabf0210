"""A plugin for ``llm``: the models of this machine as ``edge-llama/NAME``, in llm's own process.

``llm`` finds it by this distribution's entry point and makes its objects anew whenever it looks for a model, so what
is open is kept here: each model from its first use to the end of the process.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import llm
import pydantic
from llm.models import EmbeddingModel
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

import edge_llama
from edge_llama.backends.local_models import local_models
from edge_llama.errors import EdgeLlamaError
from edge_llama.files.artifact import BUILT_IN, existing
from edge_llama.generation import Answer, Generation, Piece
from edge_llama.media.images import MEDIA_TYPES, Image
from edge_llama.model import Model, vision_of
from edge_llama.prompts import messages as prompts
from edge_llama.prompts.tools import tool_schema
from edge_llama.sampling.params import OPTION_TEXTS

_PREFIX = "edge-llama/"
_BATCH = 64
"""Texts that are embedded together."""
_open: dict[Path, Model] = {}
_lock = threading.Lock()


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """All models, asked as they are or in an event loop."""
    for name, path in _models():
        register(EdgeLlama(name, path), AsyncEdgeLlama(name, path))


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """All models: those that write embed too."""
    for name, path in _models():
        register(EdgeLlamaEmbeddings(name, path))


def _models() -> Iterator[tuple[str, Path]]:
    """Their names, and where they lie. No file is opened."""
    with suppress(EdgeLlamaError):  # it is not installed
        yield BUILT_IN, existing(BUILT_IN)
    for model in local_models():
        if model.kind == "model" and not model.problem:
            yield model.name, model.path


def _opened(path: Path) -> Model:
    with _lock:
        if path not in _open:
            _open[path] = edge_llama.open(path)
        return _open[path]


def _options() -> type[llm.Options]:
    """The sampling options, as the command line has them. A schema is llm's own affair, and it has no logprobs."""
    several: Any = str | list[str] | dict[int, float]
    fields: dict[str, Any] = {}
    for name, text in OPTION_TEXTS.items():
        if name not in ("json_schema", "logprobs"):
            kind = several if text.is_repeated else text.kind
            fields[name] = (kind | None, pydantic.Field(default=None, description=text.help))
    return pydantic.create_model("Options", __base__=llm.Options, **fields)


class _Local:
    """What is known of a model before it is open."""

    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = _options()

    def __init__(self, name: str, path: Path) -> None:
        self.model_id = _PREFIX + name
        self._path = path

    @property
    def attachment_types(self) -> frozenset[str]:
        """Images, if it has a vision tower."""
        try:
            return MEDIA_TYPES if vision_of(self._path, {}) else frozenset()
        except EdgeLlamaError:  # who opens it is told
            return frozenset()

    def _begun(self, prompt: llm.Prompt) -> Generation:
        """The answer to a prompt, begun; the first one waits for the model to load."""
        model = _opened(self._path)
        given = {name: _value(name, value) for name, value in prompt.options if value is not None}
        tools = [
            tool_schema(tool.name, tool.description, tool.input_schema or None)
            for tool in prompt.tools
            if isinstance(tool, llm.Tool)
        ]
        schema = cast("dict[str, Any] | None", prompt.schema)  # llm has made one of a class of pydantic's
        return model.answer(list(_messages(prompt)), tools=tools, json_schema=schema, **given)

    def _record(self, response: "llm.Response | llm.AsyncResponse", answer: Answer) -> None:
        """What llm keeps of an answer in its log."""
        timings = answer.timings
        details = {"cached_tokens": timings.cached_tokens, "reasoning_tokens": timings.thinking_tokens}
        response.set_usage(
            input=timings.prompt_tokens,
            output=timings.generated_tokens,
            details={name: count for name, count in details.items() if count},
        )
        response.response_json = {"finish_reason": answer.finish_reason, "notes": list(answer.notes)}
        response.set_resolved_model(_opened(self._path).artifact.name)


class EdgeLlama(_Local, llm.Model):  # type: ignore[misc] # a property where it has an attribute
    """A model of this machine."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,  # noqa: ARG002 - the prompt has its messages
    ) -> Iterator[str | StreamEvent]:
        """The answer's parts as they come, or each whole. Raises what :meth:`edge_llama.Model.answer` does."""
        with self._begun(prompt) as generation:
            if stream:
                for piece in generation:
                    yield from _events(piece, response)
            answer = generation.result()
        if not stream:
            yield from _events(answer, response)
        self._record(response, answer)


class AsyncEdgeLlama(_Local, llm.AsyncModel):  # type: ignore[misc] # as above
    """The same for event loops: no thread waits for an answer."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,  # noqa: ARG002
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """See :meth:`EdgeLlama.execute`."""
        generation = await asyncio.to_thread(partial(self._begun, prompt))
        try:
            if stream:
                async for piece in generation:
                    for event in _events(piece, response):
                        yield event
            answer = await generation
        finally:
            generation.cancel()
        if not stream:
            for event in _events(answer, response):
                yield event
        self._record(response, answer)


class EdgeLlamaEmbeddings(EmbeddingModel):
    """A model of this machine that embeds texts."""

    batch_size = _BATCH

    def __init__(self, name: str, path: Path) -> None:
        self.model_id = _PREFIX + name
        self._path = path

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:  # noqa: ARG002
        """A vector of unit length for each text; raises what :meth:`edge_llama.Model.embed` does."""
        texts = [item for item in items if isinstance(item, str)]  # llm has refused bytes
        for vector in _opened(self._path).embed(texts):
            yield vector.tolist()


def _value(name: str, value: Any) -> Any:
    """An option as the runtime takes it; what may be given several times may be one line of the command line."""
    text = OPTION_TEXTS[name]
    return text.from_line(value, name) if text.is_repeated and isinstance(value, str) else value


def _messages(prompt: llm.Prompt) -> Iterator[prompts.Message]:
    """The whole conversation up to the prompt, with its system message."""
    messages = prompt.messages
    if prompt.system and not any(message.role == "system" for message in messages):
        yield prompts.Message("system", prompt.system)
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        yield from map(_result, results)
        if not results:
            yield _said(message)


def _said(message: Message) -> prompts.Message:
    thinking = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    calls = [_call(part) for part in message.parts if isinstance(part, ToolCallPart)]
    return prompts.Message(message.role, _content(message.parts), calls, thinking=thinking)  # type: ignore[arg-type]


def _call(part: ToolCallPart) -> prompts.ToolCall:
    given = {"id": part.tool_call_id} if part.tool_call_id else {}
    return prompts.ToolCall(part.name, part.arguments, **given)


def _result(part: ToolResultPart) -> prompts.Message:
    images = [_image(attachment) for attachment in part.attachments]
    output = part.output or part.exception or ""
    return prompts.Message("tool", [*images, output], tool_call_id=part.tool_call_id, name=part.name or None)


def _content(parts: Iterable[Part]) -> str | list[str | Image]:
    """Texts and images in their order, but images before a single text: so models were trained."""
    content: list[str | Image] = []
    for part in parts:
        if isinstance(part, TextPart):
            content.append(part.text)
        elif isinstance(part, AttachmentPart) and part.attachment:
            content.append(_image(part.attachment))
    texts = [part for part in content if isinstance(part, str)]
    if len(texts) < 2:
        return [*(part for part in content if isinstance(part, Image)), *texts]
    return content


def _image(attachment: llm.Attachment) -> Image:
    data: bytes = attachment.content_bytes()  # type: ignore[no-untyped-call]
    return Image.open(data)


def _events(said: Piece | Answer, response: "llm.Response | llm.AsyncResponse") -> Iterator[StreamEvent]:
    """A part of an answer, as llm tells it; of calls it wants to know twice."""
    if said.thinking:
        yield StreamEvent("reasoning", said.thinking)
    if said.text:
        yield StreamEvent("text", said.text)
    for call in said.tool_calls:
        yield StreamEvent("tool_call_name", call.name, tool_call_id=call.id)
        arguments = call.to_json()["function"]["arguments"]
        yield StreamEvent("tool_call_args", arguments, tool_call_id=call.id)
        response.add_tool_call(llm.ToolCall(call.name, call.arguments, call.id))
