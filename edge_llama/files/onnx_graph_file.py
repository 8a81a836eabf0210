"""What an ONNX file says of its weights, its input and its output, read without ONNX. No native code.

The file is a protocol buffer (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); of it only what is needed is
read: the graph's inputs and outputs, initializers whose data lies beside it, and what a device's engine compiled there.
Where else a file is named ONNX Runtime (1.32) itself refuses one that is outside of the folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.formats import FORMATS, Format
from edge_llama.files.gguf import TensorInfo
from edge_llama.files.protobuf import Field, WireError, fields, packed
from edge_llama.host.regular_files import opened

_MAX_BYTES = 1 << 26  # weights lie beside the graph: a large one is a few hundred kilobytes
_AGAIN = "copy the whole bundle again, or convert again"
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_KIND, _NODE_ATTRIBUTE, _ATTRIBUTE_NAME, _ATTRIBUTE_NUMBER, _ATTRIBUTE_TEXT = 4, 5, 1, 3, 4
_CONTEXT = b"EPContext"
"""The kind of node that stands for what a provider compiled: onnxruntime.ai/docs/execution-providers, EP Context."""
_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_KIND, _TENSOR_SHAPE, _SHAPE_SIZE, _SIZE_NUMBER = 2, 1, 1, 2, 1, 1
_TENSOR_SIZE, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_STORED = {1: "f32", 3: "i8", 5: "i16", 6: "i32", 7: "i64", 10: "f16", 11: "f64", 16: "bf16"}
_OWN = {2: ("u8", 1, 1), 4: ("u16", 1, 2), 9: ("bool", 1, 1), 12: ("u32", 1, 4), 13: ("u64", 1, 8)}
_OWN |= {21: ("u4", 2, 1), 22: ("i4", 2, 1)}
_FORMATS = {kind: FORMATS[name] for kind, name in _STORED.items()}
_FORMATS |= {kind: Format(name, -1, values, nbytes) for kind, (name, values, nbytes) in _OWN.items()}


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a graph says of an input or output: its numbers, and its sizes, of which None is open."""

    format: Format | None
    """None: it does not say, or they are no numbers that are known."""
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.format or 'what is no number'} [{sizes}]"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """``data``: the files beside it, and the tensors in each, at their offsets."""

    path: Path
    inputs: tuple[str, ...]
    """Also initializers that may be given in their stead."""
    outputs: tuple[str, ...]
    data: Mapping[Path, tuple[TensorInfo, ...]]
    types: Mapping[str, ValueType] = field(default_factory=dict)
    """Of inputs and outputs, by name."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Those that lie beside the graph."""
        return tuple(tensor for tensors in self.data.values() for tensor in tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph's file, and those beside it."""
        return (self.path, *self.data)

    def identified(self) -> list[tuple[Path, int, Sequence[TensorInfo]]]:
        """The files as :func:`edge_llama.files.identity.identity_of` takes them: the graph whole."""
        return [(self.path, self.path.stat().st_size, ()), *((file, 0, tensors) for file, tensors in self.data.items())]


def read_onnx(path: Path) -> OnnxFile:
    """Read and check the ONNX file at ``path``; its tensors' data must be whole, in files of the same folder.

    ArtifactError names what is malformed.
    """
    try:
        with opened(path) as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"is larger than {_MAX_BYTES:,} bytes, where the graph without weights is expected")
        return _read(path, memoryview(raw))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=_AGAIN) from error
    except WireError as error:
        raise ArtifactError(f"{path}: {error}, or not an ONNX file", remedy=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: {error}", remedy=_AGAIN) from error


def data_of(graphs: Iterable[OnnxFile]) -> dict[Path, tuple[TensorInfo, ...]]:
    """The files beside ``graphs`` of a folder, and the tensors in each: what several graphs share is there once."""
    found: dict[Path, dict[TensorInfo, None]] = {}
    for graph in graphs:
        for file, tensors in graph.data.items():
            found.setdefault(file, {}).update(dict.fromkeys(tensors))
    return {file: tuple(tensors) for file, tensors in found.items()}


def _read(path: Path, raw: memoryview) -> OnnxFile:
    graph = next((value for number, value in _fields(raw) if number == _MODEL_GRAPH), None)
    if not isinstance(graph, memoryview):
        raise ValueError("not an ONNX file: it holds no graph")
    inputs, outputs = (
        [(_name(value), _type(value)) for value in _within(graph, number)] for number in (_GRAPH_INPUT, _GRAPH_OUTPUT)
    )
    found = [pair for value in _within(graph, _GRAPH_TENSOR) if (pair := _external(value))]
    if _CONTEXT in bytes(graph):
        found += [pair for value in _within(graph, _GRAPH_NODE) if (pair := _context(path, value))]
    return OnnxFile(
        path,
        inputs=tuple(name for name, _ in inputs),
        outputs=tuple(name for name, _ in outputs),
        data=_data(path, found),
        types=dict([*inputs, *outputs]),
    )


def _fields(message: Field) -> Iterator[tuple[int, Field]]:
    """The fields of a message within the file."""
    if isinstance(message, int):
        raise ValueError("is damaged: a number where a message is expected")
    return fields(message)


def _name(message: Field) -> str:
    """The field ``name`` of an input or output."""
    return next((_text(value) for number, value in _fields(message) if number == 1), "")


def _type(message: Field) -> ValueType:
    """The field ``type`` of an input or output."""
    kinds = _within(message, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_KIND)
    sizes = _within(message, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_SIZE)
    format_ = next((_FORMATS.get(kind) for kind in kinds if isinstance(kind, int)), None)
    return ValueType(format_, tuple(map(_size, sizes)))


def _size(message: Field) -> int | None:
    """A dimension: a number, or a name for any."""
    return next((value for value in _within(message, _SIZE_NUMBER) if isinstance(value, int)), None)


def _within(message: Field, *numbers: int) -> list[Field]:
    """The fields of the first number, of each of these the fields of the next one, and so on."""
    found = [message]
    for wanted in numbers:
        found = [value for each in found for number, value in _fields(each) if number == wanted]
    return found


def _text(value: Field) -> str:
    if isinstance(value, int):
        raise ValueError("is damaged: a number where text is expected")
    return bytes(value).decode("utf-8")


def _external(message: Field) -> tuple[TensorInfo, str] | None:
    """A tensor with data in another file, and that file's name; None for one whose data is here."""
    name, kind, shape = "", 0, list[int]()
    entries: dict[str, str] = {}
    for number, value in _fields(message):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_SIZE:
            shape += [value] if isinstance(value, int) else packed(value)
        elif number == _TENSOR_EXTERNAL:
            pair = {key: _text(text) for key, text in _fields(value)}
            entries[pair.get(1, "")] = pair.get(2, "")
    if not entries:
        return None
    format_ = _FORMATS.get(kind)
    if format_ is None:
        raise ValueError(f"tensor {name!r:.100} has the unknown type {kind}")
    info = TensorInfo(name, tuple(shape) or (1,), format_, _number(entries.get("offset", "0"), name))
    _check_size(info, _number(entries.get("length", str(info.nbytes)), name))
    return info, entries.get("location", "")


def _context(path: Path, node: Field) -> tuple[TensorInfo, str] | None:
    """What a device's engine compiled, where the node names a file of it: all its bytes as a tensor."""
    if not any(isinstance(kind, memoryview) and kind == _CONTEXT for kind in _within(node, _NODE_KIND)):
        return None
    found = [dict(_fields(value)) for value in _within(node, _NODE_ATTRIBUTE)]
    attributes = {_text(each.get(_ATTRIBUTE_NAME, memoryview(b""))): each for each in found}
    is_within = attributes.get("embed_mode", {_ATTRIBUTE_NUMBER: 1}).get(_ATTRIBUTE_NUMBER, 0)
    if is_within or "ep_cache_context" not in attributes:
        return None
    name = _text(attributes["ep_cache_context"].get(_ATTRIBUTE_TEXT, 0))
    size = _beside(path, name).stat().st_size
    if not size:
        raise ValueError(f"{name} is empty")
    return TensorInfo(name, (size,), FORMATS["i8"], 0), name


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"tensor {name!r:.100}: {text!r:.100} is no place in a file")
    return int(text)


def _check_size(info: TensorInfo, length: int) -> None:
    if min(info.shape) < 1 or prod(info.shape) > 1 << 62:
        raise ValueError(f"tensor {info.name!r:.100} has the impossible shape {list(info.shape)}")
    if length != info.nbytes:
        raise ValueError(f"tensor {info.name!r:.100} has {length:,} bytes, its shape needs {info.nbytes:,}")


def _data(path: Path, found: Iterable[tuple[TensorInfo, str]]) -> dict[Path, tuple[TensorInfo, ...]]:
    """The files beside ``path`` by what their tensors say; each must hold every tensor of its own whole."""
    tensors: dict[str, list[TensorInfo]] = {}
    for tensor, location in found:
        tensors.setdefault(location, []).append(tensor)
    return {_beside(path, name): _checked(path, name, tensors[name]) for name in sorted(tensors)}


def _beside(path: Path, name: str) -> Path:
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise ValueError(f"its weights lie in {name!r:.200}, expected a file beside it")
    data = path.with_name(name)
    if not data.is_file():
        raise ValueError(f"its weights are missing: {data}")
    return data


def _checked(path: Path, name: str, tensors: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    size = path.with_name(name).stat().st_size
    for tensor in tensors:
        if (end := tensor.offset + tensor.nbytes) > size:
            raise ValueError(
                f"tensor {tensor.name!r:.100} ends at byte {end:,}, but {path.with_name(name)} has {size:,}"
            )
    return tuple(tensors)
