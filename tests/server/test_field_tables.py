"""The page of fields says what the code does."""

import field_tables

from edge_llama.server.fields import rows


def test_the_page_lists_each_field_of_each_request() -> None:
    assert field_tables.on_page() == field_tables.listed(), "PYTHONPATH=. python scripts/field_tables.py"


def test_each_field_says_what_comes_of_it() -> None:
    silent = {
        f"{endpoint}: {row.name}"
        for endpoint, fields in field_tables.requests()
        for row in rows(fields)
        if not row.note
    }
    assert not silent
