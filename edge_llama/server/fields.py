"""What a request may say. Each field tells what comes of it; the tables of the docs are made of that.

A field of a request is honoured unless it is marked :class:`Ignored` (accepted, without effect, and named in the
response's header ``edge-llama-ignored``) or :class:`Refused` (an error that names it, unless it says what is done
anyway). What no field is called is refused too.

A field that may be of several kinds is a union whose members have a ``Tag``, told apart by :func:`by_text` or
:func:`by_type`: then an error is about the kind that was meant, and not about all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

IGNORED_HEADER = "edge-llama-ignored"
_LONGEST_WORD = 64
_KINDS = ("type", "role")
"""What fields are called that say of which kind an object is."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Accepted without effect."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An error, unless its value is among ``allowed`` or null."""

    why: str
    allowed: tuple[Any, ...] = ()

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.allowed], "description": f"Not supported: {self.why}."}


class Fields(BaseModel):
    """A request, or an object within one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = {name: _whole(value) for name, value in data.items()}
        for name, mark in _refused(cls).items():
            if (value := given.get(name)) is not None and not _is_among(value, mark.allowed):
                text = f"{name}{_shown(value)} is not supported: {mark.why}"
                raise PydanticCustomError("refused", "{text}", {"text": text, "param": name})
        return given

    def ignored(self) -> list[str]:
        """Names of the fields without effect that were given, of objects within too, each once."""
        return list(dict.fromkeys(_ignored(self)))


def _whole(value: Any) -> Any:
    """5.0 is a whole number in JSON, whose schemas say so too."""
    if isinstance(value, list):
        return list(map(_whole, value)) if _has(value, float | list) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _has(values: Sequence[Any], kinds: type | UnionType) -> bool:
    """Whether one of them is of these kinds: where there are a hundred thousand numbers, none is looked at alone."""
    return any(issubclass(each, kinds) for each in set(map(type, values)))


def _shown(value: object) -> str:
    """A refused value, if it is a word: which of several things can't be had."""
    return f" {value!r}" if isinstance(value, str) and value.isidentifier() and len(value) <= _LONGEST_WORD else ""


def by_text(key: str, *known: str, **same: str) -> Discriminator:
    """Which kind of object it is, by the text at ``key``: the union's members have a ``Tag("key=text")``.

    ``same`` are other texts, each with the one that stands for the same kind.
    """

    def tag(value: Any) -> str | None:
        text = value.get(key) if isinstance(value, Mapping) else None
        return f"{key}={same.get(text, text)}" if isinstance(text, str) else None

    return Discriminator(
        tag,
        custom_error_type="unknown_kind",
        custom_error_message=f"expected an object whose {key} is one of {', '.join([*known, *same])}",
    )


def by_type(expected: str) -> Discriminator:
    """Which kind of value it is, by its type: the union's members have a ``Tag("<str>")``, ``Tag("<list>")``, ..."""
    return Discriminator(
        lambda value: f"<{type(value).__name__}>",
        custom_error_type="unknown_kind",
        custom_error_message=f"expected {expected}",
    )


def _is_among(value: object, allowed: tuple[Any, ...]) -> bool:
    """True is not 1 here."""
    return any(type(value) is type(each) and value == each for each in allowed)


def _ignored(value: object) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for each in value if _has(value, Fields | list | tuple) else ():
            yield from _ignored(each)
    elif isinstance(value, Fields):
        for name in value.model_fields_set:
            given = getattr(value, name, None)
            field = type(value).model_fields.get(name)
            if field and given is not None and _mark(field, Ignored):
                yield str(given) if name == "type" else field.alias or name  # a whole object is called by its kind
            else:
                yield from _ignored(given)


def _mark(field: FieldInfo, kind: type) -> Any:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


@cache
def _refused(fields: type[Fields]) -> dict[str, Refused]:
    found = {field.alias or name: _mark(field, Refused) for name, field in fields.model_fields.items()}
    return {name: mark for name, mark in found.items() if mark}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the docs' table."""

    name: str
    treatment: Literal["honoured", "without effect", "refused"]
    note: str


def rows(fields: type[Fields]) -> Iterator[Row]:
    """The table of a request's fields, in their order; those of objects within as ``outer.inner``.

    Objects that may stand in several places have their fields where they come first; elsewhere that place is named.
    """
    yield from _rows(fields, "", {})


def _rows(fields: type[Fields], prefix: str, seen: dict[type[Fields], str]) -> Iterator[Row]:
    for attribute, field in fields.model_fields.items():
        name = f"{prefix}{field.alias or attribute}"
        if refused := _mark(field, Refused):
            but = f" (but for {', '.join(map(repr, refused.allowed))})" if refused.allowed else ""
            yield Row(name, "refused", f"{refused.why}{but}")
        elif ignored := _mark(field, Ignored):
            yield Row(name, "without effect", ignored.why)
        elif not (prefix and _is_kind(attribute, field)):
            yield Row(name, "honoured", field.description or "")
            yield from _inner_rows(name, field, seen)


def _inner_rows(name: str, field: FieldInfo, seen: dict[type[Fields], str]) -> Iterator[Row]:
    """Those of the objects in a field: of several kinds each is named, as ``outer[kind].inner``."""
    inner = list(dict.fromkeys(_within(field.annotation)))
    for each in inner:
        kinds = _kinds(each) if len(inner) > 1 else ()
        place = f"{name}[{', '.join(kinds)}]" if kinds else name
        if each not in seen:
            seen[each] = place
            yield from _rows(each, f"{place}.", seen)
        elif _is_refused(each):
            yield from _rows(each, f"{place}.", seen)
        else:
            yield Row(place if kinds else f"{place}.…", "honoured", f"As `{seen[each]}`")


def _is_refused(fields: type[Fields]) -> bool:
    """Whether objects of this kind are."""
    return any(field for name, field in fields.model_fields.items() if name in _KINDS and _mark(field, Refused))


def _is_kind(attribute: str, field: FieldInfo) -> bool:
    """Whether a field says nothing but which of several kinds of objects it is in."""
    return attribute in _KINDS and get_origin(field.annotation) is Literal


def _kinds(fields: type[Fields]) -> tuple[str, ...]:
    """The values of ``type`` or ``role`` that these objects have."""
    found = (field for attribute, field in fields.model_fields.items() if _is_kind(attribute, field))
    return next((get_args(field.annotation) for field in found), ())


def _within(annotation: Any) -> Iterator[type[Fields]]:
    """The kinds of objects in a field's type."""
    if get_origin(annotation) is None and isinstance(annotation, type):
        if issubclass(annotation, Fields):
            yield annotation
        return
    for each in get_args(annotation):
        yield from _within(each)
