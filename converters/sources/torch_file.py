"""Files that ``torch.save`` writes (torch 1.6 and newer), read without torch.

Such a file is a zip archive whose members are stored as they are: ``NAME/data.pkl`` tells the tensors' names, shapes
and strides, ``NAME/data/KEY`` are their numbers. The central directory says where each begins, so rows are read in
place by position and nothing is ever unpacked. Format: torch/serialization.py, caffe2/serialize/inline_container.cc.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from converters.checkpoint import Tensor
from converters.sources.file_rows import tensor_in
from converters.sources.safetensors import DTYPES, impostor
from converters.sources.torch_pickle import PickleError, Storage, View, read_pickle
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.formats import Format
from edge_llama.host.regular_files import opened

_MAX_PICKLE = 1 << 20  # that of Llama 3.1 405B takes 0.2 MB
_MAX_MEMBERS = 100_000
_RESAVE = "save it again with torch: torch.save({name: tensor.contiguous().clone() ...}, path)"
_DOWNLOAD = "download it again"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # a pickled number, before torch 1.6


@dataclass(frozen=True, slots=True)
class _Member:
    """Bytes ``start`` to ``start + size`` of the file."""

    start: int
    size: int


def read_file(
    path: Path, skip: re.Pattern[str] | None = None, dtypes: Mapping[str, Format] = DTYPES
) -> dict[str, Tensor]:
    """The tensors of the torch file at ``path``, lazily: described and checked, no number is read.

    Names that ``skip`` finds are left out unchecked; ``dtypes`` are those that may be there.
    Raises CheckpointError naming file and tensor.
    """
    try:
        with opened(path) as file:
            directory = _directory(path, file)
            prefix = _prefix(path, directory)
            _check_byte_order(path, file, directory.get(f"{prefix}/byteorder"))
            views = _views(path, file, directory[f"{prefix}/data.pkl"], skip)
            tensors = {name: _tensor(path, file, directory, prefix, name, view, dtypes) for name, view in views.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    return tensors


def read_views(path: Path) -> dict[str, View]:
    """What the file at ``path`` says of its tensors, unchecked. CheckpointError if torch.save did not write it."""
    try:
        with opened(path) as file:
            directory = _directory(path, file)
            return _views(path, file, directory[f"{_prefix(path, directory)}/data.pkl"], None)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error


def _directory(path: Path, file: BinaryIO) -> dict[str, ZipInfo]:
    """The archive's members by name; each must be stored uncompressed, once, within the file."""
    start, size = file.read(512), file.seek(0, 2)
    if start[:4] != b"PK\x03\x04":
        raise _not_torch(path, start, size)
    try:
        with ZipFile(file) as archive:
            members = archive.infolist()
    except (BadZipFile, NotImplementedError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: cut short or damaged: {error}", remedy=_DOWNLOAD) from error
    if len(members) > _MAX_MEMBERS:
        raise CheckpointError(
            f"{path}: {len(members):,} members in the archive, at most {_MAX_MEMBERS:,} are read", remedy=_RESAVE
        )
    found: dict[str, ZipInfo] = {}
    for member in members:
        if member.filename in found:
            raise CheckpointError(f"{path}: member {member.filename!r} is there twice", remedy=_DOWNLOAD)
        if member.compress_type != ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
            raise CheckpointError(f"{path}: member {member.filename!r} is compressed or encrypted", remedy=_RESAVE)
        if not 0 <= member.header_offset <= size - member.file_size:
            raise CheckpointError(
                f"{path}: member {member.filename!r} claims {member.file_size:,} bytes from byte "
                f"{member.header_offset:,}, the file has {size:,}",
                remedy=_DOWNLOAD,
            )
        found[member.filename] = member
    return found


def _not_torch(path: Path, start: bytes, size: int) -> CheckpointError:
    if start.startswith(_LEGACY):
        return CheckpointError(f"{path}: written in torch's old format, before 1.6", remedy=_RESAVE)
    if start[257:262] == b"ustar":
        return CheckpointError(f"{path}: a tar archive, as torch 0.1 wrote it", remedy=_RESAVE)
    return impostor(path, start, size) or CheckpointError(f"{path}: not a file that torch.save wrote", remedy=_DOWNLOAD)


def _prefix(path: Path, directory: Mapping[str, ZipInfo]) -> str:
    """The folder within the archive that all members are in."""
    prefixes = [name.removesuffix("/data.pkl") for name in directory if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(prefixes) != 1 or f"{prefixes[0]}/constants.pkl" in directory:
        raise CheckpointError(f"{path}: a zip archive, but none that torch.save wrote", remedy=_RESAVE)
    return prefixes[0]


def _member(path: Path, file: BinaryIO, info: ZipInfo) -> _Member:
    """Where a member's bytes are: after its local header, which must agree with the directory."""
    file.seek(info.header_offset)
    header = file.read(30)
    signature, name_size, extra_size = struct.unpack("<4s22xHH", header) if len(header) == 30 else (b"", 0, 0)
    name = file.read(name_size)
    start = info.header_offset + 30 + name_size + extra_size
    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    if signature != b"PK\x03\x04" or name != info.orig_filename.encode(encoding, "replace"):
        raise CheckpointError(f"{path}: member {info.filename!r} is not where the directory says", remedy=_DOWNLOAD)
    if start + info.file_size > file.seek(0, 2):
        raise CheckpointError(f"{path}: member {info.filename!r} ends after the file does", remedy=_DOWNLOAD)
    return _Member(start, info.file_size)


def _check_byte_order(path: Path, file: BinaryIO, info: ZipInfo | None) -> None:
    if info is not None and (order := _content(path, file, info, 16)) != b"little":
        raise CheckpointError(f"{path}: byte order is {order[:16]!r}, expected little", remedy=_RESAVE)


def _content(path: Path, file: BinaryIO, info: ZipInfo, limit: int) -> bytes:
    if info.file_size > limit:
        raise CheckpointError(
            f"{path}: {info.filename} has {info.file_size:,} bytes, at most {limit:,} are read", remedy=_RESAVE
        )
    member = _member(path, file, info)
    file.seek(member.start)
    return file.read(member.size)


def _views(path: Path, file: BinaryIO, info: ZipInfo, skip: re.Pattern[str] | None) -> dict[str, View]:
    try:
        views = read_pickle(_content(path, file, info, _MAX_PICKLE))
    except PickleError as error:
        raise CheckpointError(
            f"{path}: its pickle is refused: {error}", remedy="give a file of weights alone"
        ) from error
    views = {name: view for name, view in views.items() if not (skip and skip.search(name))}
    for name, view in views.items():
        if not isinstance(view, View):
            raise CheckpointError(
                f"{path}: {name[:200]!r} is a {type(view).__name__}, expected a tensor", remedy=_RESAVE
            )
    return views


def _tensor(
    path: Path,
    file: BinaryIO,
    directory: Mapping[str, ZipInfo],
    prefix: str,
    name: str,
    view: View,
    dtypes: Mapping[str, Format],
) -> Tensor:
    """A view of a storage as a tensor whose rows are read in place."""

    def fail(problem: str, remedy: str = _DOWNLOAD) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name[:200]!r} {problem}", remedy=remedy)

    format_ = _format(view, dtypes, fail)
    shape, strides, item = view.shape or (1,), view.strides or (1,), format_.block_bytes
    pitch = _pitch(shape, strides)
    if view.offset < 0 or min(shape) < 1 or pitch is None:
        raise fail(f"of shape {list(shape)} has strides {list(strides)}: its rows can't be read", _RESAVE)
    key, count, columns = view.storage.key, view.storage.count, shape[-1]
    info = directory.get(f"{prefix}/data/{key}") if type(key) is str else None
    if info is None:
        raise fail("has no numbers in the archive")
    if count * item != info.file_size:
        raise fail(f"claims a storage of {count:,} x {item} bytes, the file has {info.file_size:,}")
    if (end := view.offset + (prod(shape[:-1]) - 1) * pitch + columns) > count:
        raise fail(f"of shape {list(shape)} needs {end:,} numbers, its storage has {count:,}")
    start = _member(path, file, info).start + view.offset * item
    return tensor_in(path, name, shape, format_, start, pitch * item)


def _format(view: View, dtypes: Mapping[str, Format], fail: Callable[..., CheckpointError]) -> Format:
    """The format of a view's numbers, once all that describes it is known to be numbers."""
    storage = view.storage
    parts = (view.shape, view.strides, (view.offset, storage.count if isinstance(storage, Storage) else None))
    if not all(isinstance(part, tuple) and len(part) <= 8 and all(type(n) is int for n in part) for part in parts):
        raise fail("is malformed")
    if storage.dtype not in dtypes:
        raise fail(f"has dtype {storage.dtype}, expected F32, F16 or BF16", "give full-precision weights")
    return dtypes[storage.dtype]


def _pitch(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Numbers from one row's start to the next's; None where rows are not whole, evenly spaced and apart."""
    if len(shape) != len(strides):
        return None
    if shape[-1] > 1 and strides[-1] != 1:
        return None
    outer = [(size, stride) for size, stride in zip(shape[:-1], strides[:-1], strict=True) if size != 1]
    if not outer:
        return shape[-1]
    even = all(outer[i][1] == outer[i + 1][0] * outer[i + 1][1] for i in range(len(outer) - 1))
    return outer[-1][1] if even and outer[-1][1] >= shape[-1] else None
