"""Jinja as transformers gives it to chat templates: sandboxed, without access to anything."""

import json
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def compiled(source: str) -> Template:
    """A chat template, ready to render. Raises what Jinja raises."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    del environment.globals["lipsum"]  # random text, as much as asked for
    return environment.from_string(source)


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Transformers' ``tojson``: plain JSON, without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
