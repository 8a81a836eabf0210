"""The pickle inside a torch file, read by a machine that has nothing to call.

``pickle.Unpickler`` with a restricted ``find_class`` would run no foreign code either, but a crafted stream can still
make it allocate by an index of its choice or hash tuples nested until the stack overflows. The two dozen instructions
that ``torch.save`` writes fit on a page, so they are interpreted here: a name that is not listed below, or any other
instruction, ends the reading. Nothing from the file is ever imported, called, hashed (but strings) or compared.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

STORAGES = {"torch.FloatStorage": "F32", "torch.HalfStorage": "F16", "torch.BFloat16Storage": "BF16"} | {
    f"torch.{name}Storage": name
    for name in ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble")
}
"""What a storage class is called here: safetensors' names for what can be converted, torch's for the rest."""


class PickleError(Exception):
    """The stream asks for what no file of weights needs, or is no pickle."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in the archive's member ``key``; fields are as the file gives them, of any type."""

    dtype: str
    key: Any
    count: Any


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a part of a storage, counted in numbers; fields are as the file gives them, of any type."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the stream mentioned: a stand-in, whatever it means to Python."""

    text: str


OPAQUE = object()
"""Bytes beside the weights, left over from training: there, and nothing to read."""
_MARK = object()
_MAX_INSTRUCTIONS = 200_000  # Llama 3.1 405B's take 30,000


@dataclass(slots=True)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, kind: type = object) -> Any:
        value = self.stack.pop()
        if value is _MARK or not isinstance(value, kind):
            raise PickleError(f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise PickleError("expected a dictionary with strings as keys")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise PickleError("expected a list to append to")
        self.stack[-1].extend(items)

    def name(self, text: str) -> None:
        if text not in STORAGES and text not in _CALLS:
            raise PickleError(f"it asks for {text[:200]!r}, which no file of weights needs; nothing was run")
        self.push(_Name(text))

    def storage(self) -> None:
        """``("storage", class, key, where it lay, count)``, torch's persistent id."""
        parts = self.pop(tuple)
        if len(parts) != 5 or not isinstance(parts[1], _Name) or parts[1].text not in STORAGES:
            raise PickleError("a storage is malformed")
        self.push(Storage(STORAGES[parts[1].text], parts[2], parts[4]))

    def call(self) -> None:
        """Make the plain value that a listed name stands for."""
        arguments, name = self.pop(tuple), self.pop(_Name)
        if name.text not in _CALLS:
            raise PickleError(f"it calls {name.text!r}, which no file of weights does")
        self.push(_CALLS[name.text](arguments))

    def build(self) -> None:
        """Attributes of an OrderedDict (a state dict's versions) or of a byte stream: dropped."""
        self.pop()
        if not isinstance(self.stack[-1], dict) and self.stack[-1] is not OPAQUE:
            raise PickleError("expected attributes for a dictionary only")


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": lambda parts: View(*parts[:4]),
    "torch._utils._rebuild_parameter": lambda parts: parts[0],
    "collections.OrderedDict": lambda _parts: {},
    "_io.BytesIO": lambda _parts: OPAQUE,
    "_codecs.encode": lambda _parts: OPAQUE,  # bytes, as pickles of protocol 2 have them
}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda _machine, _: None,
    "FRAME": lambda _machine, _: None,
    "STOP": lambda _machine, _: None,
    **dict.fromkeys(_VALUES, _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES"), lambda machine, _: machine.push(OPAQUE)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push((machine.pop(),)),
    "TUPLE2": lambda machine, _: machine.push((machine.pop(), machine.pop())[::-1]),
    "TUPLE3": lambda machine, _: machine.push((machine.pop(), machine.pop(), machine.pop())[::-1]),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "GLOBAL": lambda machine, names: machine.name(names.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(".".join((machine.pop(str), machine.pop(str))[::-1])),
    "BINPERSID": lambda machine, _: machine.storage(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def _instructions(data: bytes) -> list[tuple[Any, Any, int | None]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools remarks on odd escapes in strings, which torch.save never writes
        found = list(islice(pickletools.genops(data), _MAX_INSTRUCTIONS + 1))
    if len(found) > _MAX_INSTRUCTIONS:
        raise PickleError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
    return found


def read_pickle(data: bytes) -> dict[str, Any]:
    """The dictionary that ``data`` describes, its tensors as :class:`View`; PickleError for anything else."""
    machine = _Machine()
    try:
        for opcode, argument, position in _instructions(data):
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise PickleError(f"instruction {opcode.name} at byte {position} is none that torch.save writes")
            action(machine, argument)
        top: dict[str, Any] = machine.pop(dict)
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise PickleError(f"it is damaged: {error}") from error
    return top
