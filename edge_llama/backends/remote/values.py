"""JSON that a server sent, value by value: none is believed to be of its kind."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")
_LEAST = -9999.0
"""What OpenAI's form has in place of minus infinity."""


class WrongReplyError(Exception):
    """A server sent what its interface has not."""


def an_object(value: object, what: str) -> Mapping[str, Any]:
    """``value``, which must be an object."""
    return _of(dict, value, what)


def a_list(value: object, what: str) -> list[Any]:
    """``value``, which must be a list."""
    return _of(list, value, what)


def a_text(value: object, what: str) -> str:
    """``value``, which must be a text."""
    return _of(str, value, what)


def a_count(value: object, what: str) -> int:
    """``value``, which must be a whole number and not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _wrong(value, what)
    return value


def a_token(value: object, n_vocab: int) -> int:
    """``value``, which must be the id of a token."""
    token = a_count(value, "a token")
    if token >= n_vocab:
        raise WrongReplyError(f"there is no token {token:,}, ids are below {n_vocab:,}")
    return token


def a_logprob(value: object) -> float:
    """``value``, which must be a logarithm of a probability; what stands for minus infinity is that."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise _wrong(value, "a log-probability")
    return -math.inf if value <= _LEAST else min(0.0, float(value))


def _of(kind: type[_T], value: object, what: str) -> _T:
    if not isinstance(value, kind):
        raise _wrong(value, what)
    return value


def _wrong(value: object, what: str) -> WrongReplyError:
    return WrongReplyError(f"{what} is {repr(value)[:60]}")
