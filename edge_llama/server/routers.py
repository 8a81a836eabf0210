"""The routes that a server has: an API is one router, and one line here."""

from collections.abc import Sequence

from fastapi import APIRouter

from edge_llama.server import facts, page

ROUTERS: Sequence[APIRouter] = (facts.router, page.router)
