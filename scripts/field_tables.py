"""docs/server-fields.md lists the fields of requests: ``PYTHONPATH=. python scripts/field_tables.py`` writes it anew.

Nothing is named here: the endpoints are those that the server has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from fastapi.routing import APIRoute

from edge_llama.server.fields import Fields, Row, rows
from edge_llama.server.routers import ROUTERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "server-fields.md"
BEGIN, END = "<!-- fields: scripts/field_tables.py -->\n", "<!-- /fields -->\n"


def requests() -> Iterator[tuple[str, type[Fields]]]:
    """Endpoints that take a body, and what that is."""
    for route in (route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)):
        for kind in get_type_hints(route.endpoint).values():
            if isinstance(kind, type) and issubclass(kind, Fields):
                yield f"{min(route.methods)} {route.path}", kind


def listed() -> str:
    """What the page shall list."""
    return "\n".join(f"## {endpoint}\n\n{_table(fields)}" for endpoint, fields in requests())


def _table(fields: type[Fields]) -> str:
    lines = ["| field | | |", "|---|---|---|", *map(_line, rows(fields))]
    return "".join(f"{line}\n" for line in lines)


def _line(row: Row) -> str:
    note = " ".join(row.note.split()).replace("|", "\\|").removesuffix(".")
    return f"| `{row.name}` | {row.treatment} | {note[:1].upper() + note[1:]} |"


def on_page() -> str:
    """What the page lists."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(BEGIN + on_page() + END, BEGIN + listed() + END), "utf-8")
