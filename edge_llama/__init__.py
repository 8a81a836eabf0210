"""Run Llama models on the device in front of you.

    import edge_llama

    with edge_llama.open() as model:
        chat = model.chat(system="Answer briefly.")
        for piece in chat.send("What is the capital of Japan?"):
            print(piece.text, end="", flush=True)

Importing this loads no native library; opening a model does.
"""

from edge_llama.chat import Chat, ChatOptions
from edge_llama.errors import (
    ArtifactError,
    BusyError,
    CheckpointError,
    ContextFullError,
    CopyError,
    DeadlineError,
    DocumentError,
    EdgeLlamaError,
    EngineDiedError,
    EngineError,
    FidelityError,
    HistoryError,
    InputError,
    NotVerifiableError,
    OptionError,
    OutputError,
    RemoteError,
    SessionError,
    TemplateError,
    UnknownOptionError,
)
from edge_llama.files.artifact import Pooling
from edge_llama.generation import (
    Answer,
    AnswerOptions,
    Diverged,
    FinishReason,
    Generation,
    Piece,
    RequestOptions,
    Timings,
)
from edge_llama.media.documents.document import Document
from edge_llama.media.images import Image, ImageSource
from edge_llama.model import Model
from edge_llama.opening import open  # noqa: A004 - the API's name
from edge_llama.planning.options import OpenOptions
from edge_llama.prompts.attached import AttachedDocument
from edge_llama.prompts.context_overflow import Shortened
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.prompts.tools import Tool
from edge_llama.retrieval.passages import Passage
from edge_llama.runtime.chat_sessions import session_settings
from edge_llama.runtime.embeddings import PoolingChoice
from edge_llama.runtime.stats import Stats
from edge_llama.sampling.logprobs import Alternative, TokenLogprobs
from edge_llama.sampling.params import LogitsProcessor, SamplingOptions, SamplingParams

__all__ = [
    "Alternative",
    "Answer",
    "AnswerOptions",
    "ArtifactError",
    "AttachedDocument",
    "BusyError",
    "Chat",
    "ChatOptions",
    "CheckpointError",
    "ContextFullError",
    "CopyError",
    "DeadlineError",
    "Diverged",
    "Document",
    "DocumentError",
    "EdgeLlamaError",
    "EngineDiedError",
    "EngineError",
    "FidelityError",
    "FinishReason",
    "Generation",
    "HistoryError",
    "Image",
    "ImageSource",
    "InputError",
    "LogitsProcessor",
    "Message",
    "Model",
    "NotVerifiableError",
    "OpenOptions",
    "OptionError",
    "OutputError",
    "Passage",
    "Piece",
    "Pooling",
    "PoolingChoice",
    "RemoteError",
    "RequestOptions",
    "SamplingOptions",
    "SamplingParams",
    "SessionError",
    "Shortened",
    "Stats",
    "TemplateError",
    "Timings",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "UnknownOptionError",
    "open",
    "session_settings",
]
