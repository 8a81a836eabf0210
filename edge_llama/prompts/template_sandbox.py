"""Jinja as transformers gives it to chat templates: sandboxed, without access to anything, and with limits.

A template comes with a model file, so it may be made to hang or to fill the memory. Bounded, for each rendering:

- processor time, in every round of a loop, every call and filter, and every piece of output;
- the characters and list items that all operators, calls, filters and captured blocks make together, before they are
  made where a product says their size (``*``, ``**``, ``replace``, ``join``, paddings, format widths).

Not bounded is the time inside one native operation on values of allowed size: a regular expression of ``striptags``,
a sort, one ``sum`` of lists. What fails for want of memory raises MemoryError.
"""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SECONDS = 1.0  # the longest published templates take a few milliseconds
_SIZE = 1 << 27  # characters; a list's item counts as 8
_BITS = 1 << 16  # of one whole number
_WIDTH = 1 << 20  # a padding, an index, a count of slices
# Filters that templates call in every round with all messages, and that make no text.
_LIGHT = frozenset(
    [
        "count",
        "d",
        "default",
        "first",
        "float",
        "int",
        "last",
        "length",
        "list",
        "map",
        "reject",
        "rejectattr",
        "select",
        "selectattr",
    ]
)
_WIDE_FORMAT = re.compile(r"\d{6}")


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _Budget(threading.local):
    """What the rendering that this thread is at may still take."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._until = time.thread_time() + _SECONDS
        self._size = _SIZE

    def tick(self) -> None:
        if time.thread_time() > self._until:
            raise OverflowError(f"it takes more than {_SECONDS:g} s")

    def spend(self, size: int) -> None:
        self._size -= size
        if self._size < 0:
            raise OverflowError(f"it makes more than {_SIZE:,} characters")

    def weigh(self, value: Any) -> None:
        """OverflowError if the text of ``value`` would take more than is left."""
        size, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            size += _size(item)
            if isinstance(item, dict):
                waiting += item.values()
            elif isinstance(item, list | tuple):
                waiting += item
            if size > self._size:
                self.spend(size)
            self.tick()

    def charged(self, value: Any) -> Any:
        """``value``, paid for."""
        self.tick()
        self.spend(_size(value))
        return value


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple | dict) else 0


class _Code(CodeGenerator):
    """Jinja's compiler; ``~`` goes through the environment, as other operators do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.concat(map(environment.text, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.budget = _Budget()
        self.finalize = self._weighed
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters["tojson"] = _to_json
        self.filters = {name: self._limited(name, function) for name, function in self.filters.items()}
        self.filters["_rounds"] = self._rounds
        self.filters["join"] = self._join
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]  # random text, as much as asked for

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_rounds", [], [], None, None, lineno=loop.lineno)
        return tree

    def _rounds(self, items: Iterable[Any]) -> Any:
        """What a loop goes through, watched; a loop asks for the length of what has one."""
        return _Rounds(items, self.budget) if hasattr(items, "__len__") else _watched(items, self.budget)

    def _concat(self, pieces: Iterable[str]) -> str:
        kept: list[str] = []
        for piece in pieces:
            self.budget.charged(piece)
            kept.append(piece)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator's result, if it is of a size that a prompt may need."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator in _SIZES:
            self.budget.spend(_SIZES[operator](left, right))
        return self.budget.charged(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja2's
        """What a template's function or a value's method gives, if it is of a size that a prompt may need."""
        __self.budget.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join" and args and not kwargs:
            return __self._join(args[0], owner)
        if isinstance(owner, str | bytes | int):
            __self._check_text_call(__obj.__name__, owner, args, kwargs)
        elif getattr(__obj, "__name__", "") in ("format", "format_map"):  # Jinja's wrapper of str's
            __self._check_format(str(getattr(__obj, "__wrapped__", __obj).__self__), (*args, *kwargs.values()))
        return __self.budget.charged(super().call(__context, __obj, *args, **kwargs))

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(function, "jinja_pass_arg"))  # the environment or context comes first

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            value, *others = args[skipped:]
            if name not in _LIGHT:
                self._weighed(value)
                self._check_text_call(name, value, tuple(others), kwargs)
            return self.budget.charged(function(*args, **kwargs))

        return limited

    def _check_text_call(self, name: str, value: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """OverflowError if a method of text, or the filter of that name, would make too much."""
        given = (*args, *options.values())
        if name == "format":
            self._check_format(str(value), given)
        elif any(isinstance(item, int) and abs(item) > _WIDTH for item in given):
            raise OverflowError(f"{name} of more than {_WIDTH:,}")
        if name in ("replace", "translate") and isinstance(value, str) and given:
            longest = max((len(item) for item in _texts(given)), default=0)
            found = value.count(given[0]) if name == "replace" and isinstance(given[0], str) else len(value)
            self.budget.spend(found * longest)
        elif name == "indent" and isinstance(value, str):
            self.budget.spend(value.count("\n") * max((_width(item) for item in given), default=4))

    def _check_format(self, pattern: str, values: tuple[Any, ...]) -> None:
        """OverflowError for great paddings, in the pattern or beside it (``%*d``, ``{:{}}``), and great repetitions."""
        is_asked = "*" in pattern or "{" in pattern
        great = any(isinstance(item, int) and abs(item) > _WIDTH for item in values)
        if _WIDE_FORMAT.search(pattern) or (is_asked and great):
            raise OverflowError("a format of great width")
        self._weighed(values)
        longest = max(map(len, _texts(values)), default=0)
        self.budget.spend((pattern.count("%") + pattern.count("{")) * longest)

    def _join(self, items: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        get = make_attrgetter(self, attribute) if attribute is not None else (lambda item: item)
        separated = ((str(d) if index else "", self.text(get(item))) for index, item in enumerate(items))
        return self._concat(chain.from_iterable(separated))

    def text(self, value: Any) -> str:
        """``str``, of what is not too much."""
        return str(self._weighed(value))

    def _weighed(self, value: Any) -> Any:
        """``value``, unless its text would be too long: lists may hold one text, or one another, many times over."""
        if isinstance(value, list | tuple | dict):
            self.budget.weigh(value)
        return value


class _Rounds:
    """A sequence that a loop goes through."""

    def __init__(self, items: Any, budget: _Budget) -> None:
        self._items = items
        self._budget = budget

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _watched(self._items, self._budget)


def _watched(items: Iterable[Any], budget: _Budget) -> Iterator[Any]:
    for item in items:
        budget.tick()
        yield item


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _texts(value.values())
        elif isinstance(value, list | tuple):
            yield from _texts(value)


def _width(value: Any) -> int:
    return len(value) if isinstance(value, str) else value if isinstance(value, int) else 0


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _bits(left.bit_length() + right.bit_length())
    if isinstance(left, int):
        left, right = right, left
    return _size(left) * max(right, 0) if isinstance(right, int) else 0


def _power_size(left: Any, right: Any) -> int:
    return _bits(left.bit_length() * abs(right)) if isinstance(left, int) and isinstance(right, int) else 0


def _bits(count: int) -> int:
    if count > _BITS:
        raise OverflowError(f"a number of more than {_BITS:,} bits")
    return count // 8


_SIZES: dict[str, Callable[[Any, Any], int]] = {
    "*": _product_size,
    "**": _power_size,
    "+": lambda left, right: _size(left) + _size(right),
}


class LimitedTemplate:
    """A compiled template whose renderings have a budget each."""

    def __init__(self, environment: _Environment, source: str) -> None:
        self._environment = environment
        self._source = source
        environment.budget.renew()  # constants are computed at once
        self._template = environment.from_string(source)

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template asks for, some of which it may set itself."""
        self._environment.budget.renew()
        return frozenset(find_undeclared_variables(self._environment.parse(self._source)))

    def render(self, **values: Any) -> str:
        """The text. Raises whatever a program may, MemoryError and OverflowError included."""
        self._environment.budget.renew()
        return self._template.render(**values)


def compiled(source: str) -> LimitedTemplate:
    """A chat template, ready to render. Raises what Jinja raises, and OverflowError beyond the limits."""
    return LimitedTemplate(_Environment(), source)


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _to_json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    """Transformers' ``tojson`` (utils/chat_template_utils.py): plain JSON, without Jinja's HTML escapes.

    So ``tojson(2)`` asks for ASCII, and not for an indent as it does of Jinja's own filter.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
