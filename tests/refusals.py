"""What every refusal owes to the person who reads it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_llama.errors import InputError


@contextmanager
def refusal(kind: type[InputError], match: str, *named: object) -> Iterator[None]:
    """What is done inside must be refused: by one line that says ``match``, names each of ``named`` and the remedy."""
    with pytest.raises(kind, match=match) as caught:
        yield
    error = caught.value
    assert error.exit_code == 2
    assert error.remedy, f"no remedy: {error}"
    assert "\n" not in str(error)
    for name in named:
        assert str(name) in str(error)
