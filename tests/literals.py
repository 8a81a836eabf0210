"""The words that a type allows."""

from collections.abc import Iterator
from typing import Any, get_args


def words_in(annotation: Any) -> Iterator[str]:
    """Those of all literals within it."""
    if isinstance(annotation, str):
        yield annotation
    for each in get_args(annotation):
        yield from words_in(each)
