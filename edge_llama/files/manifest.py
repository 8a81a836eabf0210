"""``edge-llama.json``: what a bundle holds, how its towers are run, and every file's size and hash. No native code.

A bundle is a folder that is copied and opened as one. Its manifest may come from anywhere, so nothing in it is
believed before it was checked: paths stay inside the folder, files are there, whole. ``seal`` covers the manifest
itself: the SHA-256 of its bytes with these digits as zeros.
"""

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edge_llama.errors import ArtifactError, NotVerifiableError
from edge_llama.files.identity import sha256_of
from edge_llama.files.json_fields import Fields, parse_object, read_bytes
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.host.windows import why_no_name

NAME = "edge-llama.json"
SCHEMA = 1
_MAX_BYTES = 1 << 20
_ZEROS = "0" * 64
_AGAIN = "copy the whole folder again, or convert again"
_T = TypeVar("_T", str, dict[str, Any])


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's size, and its SHA-256 as 64 hexadecimal digits."""

    nbytes: int
    sha256: str = _ZEROS


@dataclass(frozen=True, slots=True)
class Tower:
    """The engine that runs a tower and the file that it opens: the first, if the tower lies in several.

    ``format`` is that of its matrices, "" where a recipe mixes several.
    """

    engine: str
    file: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's contents; ``files`` by their POSIX paths in its folder, ``images`` where there is a vision tower.

    ``generation`` is the content of the checkpoint's generation_config.json, ``certificate`` that of a parity
    certificate, empty where there is none.
    """

    name: str
    writer: str
    files: Mapping[str, StoredFile]
    text: Tower | None = None
    vision: Tower | None = None
    images: VisionSpec | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The file's bytes, sealed. Their number does not depend on the files' hashes.

        ValueError or RecursionError for what JSON can't hold.
        """
        towers = {"text": self.text, "vision": self.vision}
        content = {
            "schema": SCHEMA,
            "writer": self.writer,
            "name": self.name,
            **{key: _described(tower) for key, tower in towers.items() if tower},
            **({"images": self.images.to_json()} if self.images else {}),
            "generation": dict(self.generation),
            **({"certificate": dict(self.certificate)} if self.certificate else {}),
            "files": {name: {"bytes": file.nbytes, "sha256": file.sha256} for name, file in self.files.items()},
            "seal": _ZEROS,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if len(text) > _MAX_BYTES:
            raise ValueError(f"{len(text):,} bytes, at most {_MAX_BYTES:,} are read")
        at = text.rindex(_ZEROS.encode())
        return text[:at] + hashlib.sha256(text).hexdigest().encode() + text[at + len(_ZEROS) :]


def _described(tower: Tower) -> dict[str, str]:
    stored = {"engine": tower.engine, "file": tower.file}
    return stored | ({"format": tower.format} if tower.format else {})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in ``folder``, with every file that it names there and of its size.

    ArtifactError names what is malformed, missing, or outside the folder; the files' contents are not read.
    """
    path = folder / NAME
    return _Reader(path, _parsed(path, _content(path))).manifest()


def bundle_of(file: Path) -> Path:
    """The folder of the bundle whose vision tower is ``file``, which lies in it or one folder deeper.

    ArtifactError if there is none.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / NAME).is_file():
            vision = read_manifest(folder).vision
            if vision is not None and (folder / vision.file).resolve() == file.resolve():
                return folder
    raise ArtifactError(
        f"{file}: {NAME}, which says what a tower needs, is not beside it, nor in the folder above",
        remedy="give the bundle as it was converted",
    )


def verify(
    folder: Path, on_progress: Callable[[int], None] | None = None, *, only: Container[str] | None = None
) -> Manifest:
    """Check every bit of the bundle in ``folder``; ``on_progress`` is told the bytes just checked.

    ``only``: of the files, those of these names.

    Raises ArtifactError, naming the file that is damaged, or NotVerifiableError for a manifest without a seal.
    """
    manifest = read_manifest(folder)
    raw = _content(folder / NAME)
    seal = _parsed(folder / NAME, raw).get("seal")
    if seal is None:
        raise NotVerifiableError(
            f"{folder / NAME}: carries no seal of its own",
            remedy="convert the original checkpoint with edge-llama to have one",
        )
    before, found, after = raw.rpartition(str(seal).encode("utf-8", "replace"))
    if not found or hashlib.sha256(before + _ZEROS.encode() + after).hexdigest() != seal:
        raise _damaged(folder / NAME)
    for name, file in manifest.files.items():
        if (only is None or name in only) and sha256_of(folder / name, on_progress) != file.sha256:
            raise _damaged(folder / name)
    return manifest


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: is not as it was written", remedy=f"the file is damaged: {_AGAIN}")


def _content(path: Path) -> bytes:
    return read_bytes(path, _MAX_BYTES, _AGAIN)


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    return parse_object(path, raw, _AGAIN)


class _Reader:
    """A manifest's content, read field by field."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.fields = Fields(path, content, _AGAIN)

    def manifest(self) -> Manifest:
        fields = self.fields
        schema = fields.get("schema", int)
        if schema != SCHEMA:
            newer = schema > SCHEMA
            raise fields.fail(
                "schema",
                f"is {schema}, this version of edge-llama reads {SCHEMA}",
                "it is newer: update edge-llama" if newer else _AGAIN,
            )
        files = self._files()
        text, vision = self._tower("text", files), self._tower("vision", files)
        if text is None and vision is None:
            raise fields.fail("text", "and vision are missing: there is nothing to run")
        return Manifest(
            name=fields.get("name", str),
            writer=_given(fields, "writer", ""),
            files=files,
            text=text,
            vision=vision,
            images=self._images() if vision else None,
            generation=_given(fields, "generation", {}),
            certificate=_given(fields, "certificate", {}),
        )

    def _files(self) -> dict[str, StoredFile]:
        found = {name: self._file(name, entry) for name, entry in self.fields.get("files", dict).items()}
        seen: dict[str, str] = {}
        for name in found:
            if (other := seen.setdefault(name.casefold(), name)) != name:
                called = f"files: {name[:200]!r}"
                raise self.fields.fail(called, f"and {other[:200]!r} are one file on Windows and macOS")
        return found

    def _file(self, name: str, entry: Any) -> StoredFile:
        called = f"files: {name[:200]!r}"
        if type(entry) is not dict:
            raise self.fields.fail(called, f"is {entry!r:.100}, expected an object")
        fields = replace(self.fields, content=entry, called=f"{called}: ")
        nbytes, sha256 = fields.get("bytes", int), fields.get("sha256", str)
        if len(sha256) != len(_ZEROS) or set(sha256) - set("0123456789abcdef"):
            raise fields.fail("sha256", f"is {sha256!r:.100}, expected 64 hexadecimal digits")
        found = self._found(name, called)
        if found != nbytes:
            raise self.fields.fail(called, f"has {found:,} bytes instead of {nbytes:,}")
        return StoredFile(nbytes, sha256)

    def _found(self, name: str, called: str) -> int:
        """The size of the file ``name``, which must lie in the bundle's folder."""
        fail = self.fields.fail
        plain = name.isprintable() and not any(map(why_no_name, name.split("/")))
        if not plain or str(PurePosixPath(name)) != name or set(name.split("/")) & {"", ".", ".."}:
            raise fail(called, "is no path inside the bundle")
        folder, target = self.path.parent.resolve(), self.path.parent / name
        try:
            real = target.resolve(strict=True)
            if not real.is_relative_to(folder):
                raise fail(called, f"lies outside the bundle, at {real}", "copy the files, not links")
            if not real.is_file():
                raise fail(called, "is no file")
            return real.stat().st_size
        except FileNotFoundError:
            raise fail(called, "is missing") from None
        except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
            raise fail(called, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _tower(self, key: str, files: Mapping[str, StoredFile]) -> Tower | None:
        if key not in self.fields.content:
            return None
        fields = replace(self.fields, content=self.fields.get(key, dict), called=f"{key}: ")
        engine, file = fields.get("engine", str), fields.get("file", str)
        if file not in files:
            raise fields.fail("file", f"is {file!r:.200}, which is none of the files")
        return Tower(engine, file, _given(fields, "format", ""))

    def _images(self) -> VisionSpec:
        try:
            return VisionSpec.from_json(self.fields.get("images", dict))
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error.message}", remedy=error.remedy or _AGAIN) from error


def _given(fields: Fields, key: str, default: _T) -> _T:
    """The value under ``key``, of the type of ``default``, which stands for a field that is not there: null is one."""
    value: _T = fields.get(key, type(default)) if key in fields.content else default
    return value
