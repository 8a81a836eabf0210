"""``edge-llama serve``: models for programs that speak HTTP, and a page for people."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge_llama.cli import options
from edge_llama.cli.terminal.console import note
from edge_llama.errors import InputError, OptionError
from edge_llama.planning.options import OpenOptions, checked
from edge_llama.server.listening import bound, needs_key, url
from edge_llama.server.settings import ServerSettings

_PACKAGES = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"}
"""Of the extra."""
_KEY_VARIABLE = "EDGE_LLAMA_API_KEY"
_DEFAULTS = ServerSettings()
_OWN_FILES = 256
_CACHE_MEMORY = "8G"
"""llama-server's own default (``--cache-ram``). A conversation's copy is whole: three sub-agents of a coding agent, all
below the same system prompt, would otherwise take the place of what called them."""


@options.with_opening()
def serve(
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Files, folders, or names that the verb models shows. A single one is loaded at the start, of several "
            "each when it is asked for.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen: 0.0.0.0 or :: is every address of this machine.")
    ] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = _DEFAULTS.port,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_KEY_VARIABLE,
            metavar="KEY",
            help="The key that clients must send. Without one, and where other machines can ask, one is drawn and "
            "printed. In the variable no other program sees it.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Another name for a model, as clients with fixed names send it; without MODEL for the first. May be "
            "repeated.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PORT]", help="A name that the server is reached by, beside localhost. May be repeated."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may ask, as https://HOST. May be repeated."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what /v1/responses stores in this folder, not in memory alone."),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what was read of prompts in this folder: it is there after a restart."),
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that a model answers at once. Default: 8.")
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that may wait for it. Default: 64.")
    ] = None,
    kv_cells: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of context that all requests to a model share: what begins alike counts once, and what does "
            "not fit waits or is moved to memory. Default: --n-ctx.",
        ),
    ] = None,
    cache_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Memory for what was read of prompts and has no room in the context, such as 500M: never more than "
            "half of what is free.",
        ),
    ] = _CACHE_MEMORY,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What all loaded models together may take, such as 12G; others are unloaded for one that is asked "
            "for. Default: what the machine has.",
        ),
    ] = None,
    opening: OpenOptions,
    no_isolate: Annotated[
        bool, typer.Option("--no-isolate", help="Run models in the server's own process, which is easier to debug.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve models to clients of OpenAI's and Anthropic's APIs, and a page to chat with them.

    Ctrl-C or SIGTERM ends it once its answers are finished, after 30 seconds at most; a second one at once.

    Example: edge-llama serve llama-3.2-1b-q4_k_m.gguf --alias gpt-4o --port 8080

    For others in the same network: edge-llama serve --host 0.0.0.0 --allow-host box.lan
    """
    cache_bytes = options.size(cache_memory, "--cache-memory")
    wanted = options.given(
        cache_bytes=cache_bytes, cache_dir=cache_dir, max_running=max_running, max_queued=max_queued, kv_cells=kv_cells
    )
    memory_bytes = None if memory is None else options.size(memory, "--memory")
    opened = checked({"tune": True, **opening, **wanted})
    listeners = bound(host, port)
    settings = ServerSettings(
        host=host,
        port=listeners[0].getsockname()[1],
        api_key=_drawn_key() if api_key is None and needs_key(listeners) else api_key,
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        store=store,
        limits=replace(_DEFAULTS.limits, connections=_allowed_connections(_DEFAULTS.limits.connections)),
    )
    _log_to_stderr(quiet=quiet)
    with _extra():
        from edge_llama.server.app import create  # noqa: PLC0415 - the extra, and half a second for this verb alone
        from edge_llama.server.pool import Pool  # noqa: PLC0415
        from edge_llama.server.running import serve as run  # noqa: PLC0415
    pool = Pool(models or [None], opened, aliases=_aliases(alias or ()), isolate=not no_isolate, memory=memory_bytes)
    app = create(pool, settings)
    _tell_place(settings, [entry.name for entry in pool.entries], listeners, quiet=quiet)
    code = run(app, listeners, lambda text: note(text, quiet=quiet))
    sys.stderr.flush()
    os._exit(code)  # all is closed: a thread that still waits for a model to load must not hold this up


def _drawn_key() -> str:
    key = secrets.token_urlsafe(24)
    note(f"key: {key} (${_KEY_VARIABLE} or --api-key sets another)")
    return key


def _aliases(given: Sequence[str]) -> dict[str, str | None]:
    aliases: dict[str, str | None] = {}
    for text in given:
        name, _, model = text.partition("=")
        if not name:
            raise OptionError(f"--alias {text}: expected NAME or NAME=MODEL")
        if name in aliases:
            raise OptionError(f"--alias {text}: {name} is one already", remedy="give each name once")
        aliases[name] = model or None
    return aliases


@contextmanager
def _extra() -> Iterator[None]:
    """InputError where a package of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise InputError(f"serving needs the package {error.name}", remedy="pip install 'edge-llama[serve]'") from error


def _log_to_stderr(*, quiet: bool) -> None:
    """A line for each request, and warnings of models."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("edge_llama").addHandler(handler)
    logging.getLogger("edge_llama.server").setLevel(logging.WARNING if quiet else logging.INFO)


def _allowed_connections(count: int) -> int:
    """How many of ``count`` may be open beside the process's own files, once the system was asked for all it gives."""
    if sys.platform == "win32":
        return count
    import resource  # noqa: PLC0415 - Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OWN_FILES if hard == resource.RLIM_INFINITY else min(count + _OWN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(count, max(wanted // 2, wanted - _OWN_FILES))


def _tell_place(
    settings: ServerSettings, names: Sequence[str], listeners: Sequence[socket.socket], *, quiet: bool
) -> None:
    where = url(settings.host, settings.port)
    others = " (other machines can ask, with the key)" if needs_key(listeners) else ""
    note(f"edge-llama listens at {where}{others}", quiet=quiet)
    note(f"{'model' if len(names) == 1 else 'models'}: {', '.join(names)}", quiet=quiet)
