"""Long lists of numbers are checked without a look at each: the server has one thread for all requests."""

import sys
from typing import Any

import pytest

from edge_llama.server.fields import Fields
from edge_llama.server.openai.completion_fields import CompletionFields, EmbeddingFields
from edge_llama.server.tokens import DetokenizeFields

IDS = list(range(10_000))


def calls(kind: type[Fields], given: dict[str, Any]) -> int:
    """How many functions of Python's it takes to check what is given, and to say what of it has no effect."""
    count = 0

    def called(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        assert kind.model_validate(given).ignored() == []
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (CompletionFields, {"prompt": IDS}),
        (EmbeddingFields, {"input": [IDS, IDS]}),
        (EmbeddingFields, {"input": ["a"] * 2048}),
        (DetokenizeFields, {"tokens": IDS}),
    ],
)
def test_no_function_is_called_for_each_of_many(kind: type[Fields], given: dict[str, Any]) -> None:
    assert calls(kind, given) < 500


def test_whole_numbers_are_found_among_many() -> None:
    assert DetokenizeFields.model_validate({"tokens": [*IDS, 5.0]}).tokens == [*IDS, 5]
    assert EmbeddingFields.model_validate({"input": [[1, 2], [3.0]]}).input == [[1, 2], [3]]
