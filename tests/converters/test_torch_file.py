"""Torch's files: what torch saved is what is read; whatever else is in one is a typed error, and is not run."""

import io
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal

from converters.sources.torch_file import read_file
from edge_llama import CheckpointError


def values(path: Path, name: str) -> Any:
    """All rows of a tensor, read in slices of three."""
    tensor = read_file(path)[name]
    rows = [tensor.read(start, min(start + 3, tensor.rows)) for start in range(0, tensor.rows, 3)]
    return np.vstack(rows).view({"f32": np.float32, "f16": np.float16}[tensor.format.name]).reshape(tensor.shape)


def test_what_torch_saved_is_what_is_read(tmp_path: Path) -> None:
    whole = torch.randn(7, 12)
    saved = {
        "matrix": whole,
        "rows of it": whole[2:5],
        "columns of it": whole[:, 4:9],
        "a row of it": whole[3],
        "vector": torch.randn(5).half(),
        "scalar": torch.tensor(3.5),
        "three dimensions": torch.randn(2, 3, 4),
        "two of three": torch.randn(2, 3, 4)[:, 1],
        "one row, transposed": torch.randn(1, 6).t().contiguous().t(),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    torch.save(saved, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth").keys() == saved.keys()
    for name, tensor in saved.items():
        assert np.array_equal(values(tmp_path / "x.pth", name), tensor.detach().numpy().reshape(tensor.shape or 1)), (
            name
        )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_and_a_modules_state(protocol: int, tmp_path: Path) -> None:
    state = torch.nn.Linear(4, 3).state_dict()
    assert isinstance(state, OrderedDict)
    torch.save(state, tmp_path / "x.pth", pickle_protocol=protocol)
    for name, tensor in state.items():
        assert np.array_equal(values(tmp_path / "x.pth", name), tensor.numpy())


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6).bfloat16()
    torch.save({"a": tensor}, tmp_path / "x.pth")
    found = read_file(tmp_path / "x.pth")["a"]
    assert found.format.name == "bf16"
    assert np.array_equal(found.read(1, 4).view(np.int16), tensor[1:].view(torch.int16).numpy())


def test_skipped_names_may_have_any_type(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "rope.freqs": torch.ones(2, dtype=torch.complex64)}, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth", re.compile(r"rope\.freqs$")).keys() == {"a"}


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    whole = torch.ones(1000, 100)
    torch.save({"whole": whole, "part": whole[:, :50]}, path)
    tensors = read_file(path)
    os.truncate(path, 5000)
    for tensor in tensors.values():
        with pytest.raises(CheckpointError, match="ended while being read"):
            tensor.read(500, 1000)


@dataclass
class Storage:
    """A storage as a crafted file may describe it."""

    key: Any = "0"
    count: Any = 24
    kind: Any = torch.FloatStorage
    tag: str = "storage"


@dataclass
class View:
    """A tensor as a crafted file may describe it."""

    shape: Any = (4, 6)
    strides: Any = (6, 1)
    offset: Any = 0
    storage: Any = None

    def __reduce__(self) -> Any:
        storage = self.storage or Storage()
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.shape, self.strides, False, OrderedDict())


class Crafter(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return (obj.tag, obj.kind, obj.key, "cpu", obj.count) if isinstance(obj, Storage) else None


def pickled(content: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    Crafter(out, protocol).dump(content)
    return out.getvalue()


def archive(stream: bytes, *, compression: int = zipfile.ZIP_STORED, prefix: str = "x", **more: bytes) -> bytes:
    """A torch file around a pickle, with one storage of 24 numbers."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        members = {"data.pkl": stream, "byteorder": b"little", "data/0": bytes(96), "version": b"3\n"} | more
        for name, content in members.items():
            file.writestr(f"{prefix}/{name}", content)
    return out.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def patched(data: bytes, member: bytes, at: int, value: int) -> bytes:
    """``data`` with four bytes changed in a member's entry of the central directory."""
    entry = data.rindex(member) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    return data[: entry + at] + value.to_bytes(4, "little") + data[entry + at + 4 :]


def twice(stream: bytes) -> bytes:
    out = io.BytesIO(archive(stream))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(out, "a") as file:
        file.writestr("x/data/0", bytes(96))
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("sys_info"))
    return out.getvalue()


def view(**fields: Any) -> bytes:
    return archive(pickled({"a": View(**fields)}))


def storage(**fields: Any) -> bytes:
    return view(storage=Storage(**fields))


GOOD = archive(pickled({"a": View()}))
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "a Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an HTML page": (lambda: b"<!DOCTYPE html><html></html>", "HTML page"),
    "anything else": (lambda: b"junk" * 1000, "not a file that torch.save wrote"),
    "torch's format before 1.6": (
        lambda: saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False),
        r"old format.*; save it again with torch",
    ),
    "torch 0.1's tar format": (tarred, "tar archive.*; save it again with torch"),
    "cut in half": (lambda: GOOD[: len(GOOD) // 2], "cut short or damaged"),
    "cut by a byte": (lambda: GOOD[:-1], "cut short or damaged"),
    "another zip archive": (lambda: archive(b"", prefix="a/b"), "a zip archive, but none that torch.save wrote"),
    "a TorchScript archive": (lambda: archive(b"", **{"constants.pkl": b""}), "none that torch.save wrote"),
    "a bomb of compressed zeros": (
        lambda: archive(pickled({"a": View()}), compression=zipfile.ZIP_DEFLATED, **{"data/1": bytes(1 << 24)}),
        "compressed",
    ),
    "a member larger than the file": (
        lambda: patched(patched(GOOD, b"x/data/0", 20, 1 << 30), b"x/data/0", 24, 1 << 30),
        r"'x/data/0' claims 1,073,741,824 bytes",
    ),
    "a member with two sizes": (lambda: patched(GOOD, b"x/data/0", 24, 1 << 30), "compressed"),
    "a member that begins elsewhere": (lambda: patched(GOOD, b"x/data/0", 42, 0), "not where the directory says"),
    "a member twice": (lambda: twice(pickled({"a": View()})), "'x/data/0' is there twice"),
    "a huge pickle": (lambda: archive(pickled({"a": "x" * (2 << 20)})), r"data\.pkl has 2,\d+,\d+ bytes, at most"),
    "big-endian": (lambda: archive(pickled({"a": View()}), byteorder=b"big"), "byte order is b'big'"),
    "no pickle": (lambda: archive(b"junk"), "pickle is refused"),
    "a pickle cut short": (lambda: archive(pickled({"a": View()})[:-20]), "pickle is refused"),
    "an empty pickle": (lambda: archive(b""), "pickle is refused"),
    "a list": (lambda: saved([torch.ones(2)]), "expected dict, found list"),
    "a number among the tensors": (
        lambda: saved({"a": torch.ones(2), "step": 3}),
        "'step' is a int, expected a tensor",
    ),
    "keys that are no strings": (lambda: saved({1: torch.ones(2)}), "strings as keys"),
    "a whole module": (lambda: saved(torch.nn.Linear(2, 2)), "asks for 'torch.nn.modules.linear.Linear'"),
    "integers": (lambda: saved({"a": torch.ones(2, dtype=torch.int64)}), "tensor 'a' has dtype Long"),
    "float8": (lambda: saved({"a": torch.ones(2).to(torch.float8_e4m3fn)}), "pickle is refused: it asks for"),
    "a sparse tensor": (lambda: saved({"a": torch.eye(3).to_sparse()}), "asks for .*sparse"),
    "a transposed view": (lambda: saved({"a": torch.ones(2, 3).t()}), r"'a' of shape \[3, 2\] has strides.*contiguous"),
    "an expanded view": (lambda: saved({"a": torch.ones(3).expand(9, 3)}), r"strides \[0, 1\]"),
    "every other column": (lambda: saved({"a": torch.ones(4, 6)[:, ::2]}), r"strides \[6, 2\]"),
    "rows unevenly apart": (lambda: saved({"a": torch.ones(2, 3, 4)[:, :2]}), r"strides \[12, 4, 1\]"),
    "a negative stride": (lambda: view(strides=(-6, 1)), r"'a' of shape \[4, 6\] has strides \[-6, 1\]"),
    "rows that overlap": (lambda: view(strides=(1, 1)), r"strides \[1, 1\]"),
    "a negative offset": (lambda: view(offset=-4), "rows can't be read"),
    "a view longer than its storage": (lambda: view(shape=(5, 6)), "needs 30 numbers, its storage has 24"),
    "a view that begins too late": (lambda: view(offset=1), "needs 25 numbers, its storage has 24"),
    "a view without end": (lambda: view(shape=(2**60, 2**60), strides=(2**60, 1)), "its storage has 24"),
    "no rows": (lambda: view(shape=(0, 6)), "rows can't be read"),
    "strides missing": (lambda: view(strides=(1,)), "rows can't be read"),
    "a shape of strings": (lambda: view(shape=("4", "6")), "'a' is malformed"),
    "a shape that is no tuple": (lambda: view(shape=24), "'a' is malformed"),
    "a shape of truths": (lambda: view(shape=(True, True)), "'a' is malformed"),
    "an offset that is a tensor": (lambda: view(offset=View()), "'a' is malformed"),
    "no storage": (lambda: view(storage="0"), "'a' is malformed"),
    "a storage that is not there": (lambda: storage(key="1"), "no numbers in the archive"),
    "a storage elsewhere": (lambda: storage(key="../data.pkl"), "no numbers in the archive"),
    "a storage without a name": (lambda: storage(key=None), "no numbers in the archive"),
    "a storage larger than its member": (lambda: storage(count=1000), "claims a storage of 1,000 x 4 bytes.* 96"),
    "a storage of another kind": (lambda: storage(kind=OrderedDict), "a storage is malformed"),
    "a storage of many": (lambda: storage(count="24"), "'a' is malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_typed_error_that_names_it(name: str, tmp_path: Path) -> None:
    make, expected = BAD[name]
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(make())
    with refusal(CheckpointError, expected, path):
        read_file(path)


class Canary:
    """Sings when a pickle is run."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("place", ["alone", "a tensor", "a shape", "a key", "attributes"])
def test_nothing_in_a_file_is_ever_run(place: str, protocol: int, tmp_path: Path) -> None:
    sung = tmp_path / "sung"
    canary = Canary(os.mkdir, str(sung))
    attributes = Canary(OrderedDict)
    attributes.call = (OrderedDict, (), {"_metadata": canary})  # type: ignore[assignment]
    contents: dict[str, Any] = {
        "alone": canary,
        "a tensor": {"a": canary},
        "a shape": {"a": View(shape=canary)},
        "a key": {canary: View()},
        "attributes": attributes,
    }
    path = tmp_path / "x.pth"
    path.write_bytes(archive(pickled(contents[place], protocol)))
    with refusal(CheckpointError, "pickle is refused", path):
        read_file(path)
    assert not sung.exists()
    pickle.loads(pickled(canary, protocol))
    assert sung.exists(), "the canary can't sing at all"


CRAFTED: dict[str, bytes] = {
    "a memo at an index of its choice": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a bytearray of its choice": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a string of its choice": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b".",
    "a call by text": b"cos\nsystem\n(S'true'\ntR.",
    "an instance by text": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "an extension": b"\x80\x02\x82\x01.",
    "a name put together": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a name within a name": b"\x80\x04\x8c\x12torch._utils\x8c\x03sys\x93.",
    "tuples nested without end, as a key": b"\x80\x02})" + b"\x85" * 190_000 + b"Ns.",
    "lists nested without end": b"\x80\x02" + b"]" * 900_000 + b".",
    "more taken than there is": b"\x80\x02\x86.",
    "a mark that is not there": b"\x80\x02t.",
    "a tensor called with too little": b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rs.",
    "a storage that is called": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a dictionary that holds itself, many times": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_neither_runs_nor_ends_the_process(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(archive(CRAFTED[name]))
    with refusal(CheckpointError, r"pickle is refused|expected a tensor", path):
        read_file(path)


def test_a_damaged_file_is_read_or_refused_but_never_anything_else(tmp_path: Path, rng: np.random.Generator) -> None:
    """Bytes changed at random in all but the numbers."""
    good = bytearray(saved({"a": torch.ones(3, 4), "b": torch.ones(5).half()}))
    path = tmp_path / "x.pth"
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            for tensor in read_file(path).values():
                tensor.read(0, tensor.rows)
        except CheckpointError:
            refused += 1
    assert refused
