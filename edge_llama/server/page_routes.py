"""The page at ``/``: a few static files, and what it shows of the models.

The policy that goes with it allows scripts, styles and requests of this server alone, and no markup from text, so that
nothing a model writes can do or load anything. These routes are no API: the OpenAPI document leaves them out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request, Response

from edge_llama.model import Model
from edge_llama.prompts.thinking import form_in
from edge_llama.server.failures import ApiError, json_response
from edge_llama.server.handling import Here

router = APIRouter(include_in_schema=False)
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FRESH = "no-cache"
"""Kept, and asked about each time: files of two versions don't go together."""
_LASTING = "max-age=86400"
"""For a picture: browsers ask for the page's icon whenever its address changes."""
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Those that the page has: what the system's own table says of .js is another on some."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> Mapping[str, _File]:
    """The page's files by name: nothing else is found, whatever a request's path is."""
    found = {}
    for each in files("edge_llama.server").joinpath("page").iterdir():
        if media_type := _MEDIA_TYPES.get(PurePath(each.name).suffix):
            content = each.read_bytes()
            found[each.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return _response(_files()["index.html"], request)


@router.get("/page/facts.json")
async def facts(server: Here) -> Response:
    """What the page shows of the server and its models; null: not known before it is loaded."""
    limits = server.settings.limits
    loaded = {entry.name: server.pool.loaded.get(entry.name) for entry in server.pool.entries}
    told = {
        "version": version("edge-llama"),
        "limits": {"body_bytes": limits.body_bytes, "images": limits.images},
        "models": [_model(name, model) for name, model in loaded.items() if not (model and model.artifact.is_encoder)],
    }
    return json_response(told, headers={"Cache-Control": "no-store"})


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(name: str, request: Request) -> Response:
    """One of the page's files. ApiError if it has none of that name."""
    if (found := _files().get(name)) is None:
        raise ApiError(404, f"the page has no file {name!r:.100}")
    return _response(found, request)


def _response(found: _File, request: Request) -> Response:
    lasting = found.media_type.startswith("image/")
    headers = {**_HEADERS, "ETag": found.etag, "Cache-Control": _LASTING if lasting else _FRESH}
    known = request.headers.get("if-none-match", "")
    if found.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=f"{found.media_type}; charset=utf-8")


def _model(name: str, model: Model | None) -> Mapping[str, Any]:
    if model is None:
        return {"name": name, "loaded": False}
    artifact, placement, sampling = model.artifact, model.placement, model.sampling({})
    return {
        "name": name,
        "loaded": True,
        "file": f"{artifact.path.name} ({artifact.form})",
        "bytes": artifact.weight_bytes,
        "engine": artifact.engine,
        "device": placement.where,
        "device_reason": placement.reason,
        "n_ctx": model.n_ctx,
        "vision": model.vision is not None,
        "thinks": form_in(artifact.chat_template or "") is not None,
        "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")},
    }
