"""The routes that a server has: an API is one router, and one line here."""

from collections.abc import Sequence

from fastapi import APIRouter

from edge_llama.server import facts, page_routes, tokens
from edge_llama.server.anthropic import messages
from edge_llama.server.openai import chat, completions, embeddings, models, responses

ROUTERS: Sequence[APIRouter] = (
    facts.router,
    page_routes.router,
    chat.router,
    completions.router,
    embeddings.router,
    models.router,
    responses.router,
    tokens.router,
    messages.router,
)
