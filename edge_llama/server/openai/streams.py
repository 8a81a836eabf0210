"""What OpenAI's streams have in common."""

from edge_llama.generation import FinishReason
from edge_llama.server.events import Event
from edge_llama.server.failures import ApiError

DONE = Event("[DONE]")
"""The end of a stream that is whole."""


def finish_reason(reason: FinishReason) -> str:
    """Why an answer ended. ApiError if it was not its own end: the model was closed."""
    if reason == "cancelled":
        raise ApiError(503, "the answer was cut off: the model was closed", code="cancelled")
    return reason
