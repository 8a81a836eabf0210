"""Where an output lies until it is complete: the folder ``.OUTPUT.partial`` beside it.

It holds the output's files so far, a lock, and a journal: a first line that says of which conversion (source, plan
and version), then the SHA-256 of each finished tensor's data. A process that dies, however it dies, leaves it there;
the next run of the same conversion keeps of it what the hashes confirm, and goes on. The output itself appears
only complete: synced, sealed, renamed.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from converters.layout import Entry, Layout, Part
from edge_llama.errors import ArtifactError, EdgeLlamaError, OutputError
from edge_llama.files import compiled
from edge_llama.files.identity import sha256_of
from edge_llama.files.manifest import NAME, StoredFile, read_manifest
from edge_llama.host import windows
from edge_llama.host.atomic import PARTIAL, replace_folder, sync_folder

_USUAL_FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "model.safetensors.index.json"),
}
_SHARDS = "model-*-of-*.safetensors"


def partial_folder(output: Path) -> Path:
    """Where an unfinished ``output`` lies."""
    return output.parent / f".{output.name}.partial"


@contextmanager
def partial_output(
    output: Path, layout: Layout, key: str, inputs: Sequence[Path], files: Sequence[Path], *, force: bool
) -> Iterator["PartialOutput"]:
    """The output to write to; on leaving without an error it takes its place, which none of ``inputs`` may be.

    ``files`` are all that is read. ``key`` identifies the conversion: only the same one is resumed. A typed error or
    one of the file system removes what was written; anything else (Ctrl-C, a signal) keeps it for the next run. Raises
    OutputError.
    """
    output = output.absolute()
    folder = partial_folder(output)
    _check_names(output, layout, inputs, files, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{output}: another conversion is writing it", remedy="wait, or give another name") from error
    except OSError as error:
        raise OutputError(
            f"{output.parent}: cannot be written: {error.strerror}", remedy="give another folder"
        ) from error
    try:
        with closing(PartialOutput(folder, layout, key)) as partial:
            _check_space(output, layout.output_bytes - partial.resumed_bytes)
            yield partial
            partial.seal()
            if partial.examine:
                partial.examine(partial.folder)
        _check_names(output, layout, inputs, files, force)  # once more: somebody may have put a file there meanwhile
        _publish(folder, output, layout)
        _remove(folder, lock)
    except EdgeLlamaError:
        _remove(folder, lock)
        raise
    except windows.FileInUseError as error:
        raise OutputError(
            f"{error.filename}: {error.strerror}",
            remedy="run the same again then: what was converted is kept, and only takes its place",
        ) from error
    except OSError as error:
        _remove(folder, lock)
        raise OutputError(
            f"{output}: writing failed: {error.strerror}; it needs {layout.output_bytes:,} bytes",
            remedy="make room; nothing was left behind",
        ) from error
    finally:
        lock.release()


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove what is unfinished, and the lock last: on Windows it can't be while it is held, elsewhere it must be."""
    for entry in folder.iterdir():
        with suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != Path(lock.lock_file):
                entry.unlink()
    if windows.IS_WINDOWS:
        lock.release()
    with suppress(OSError):  # somebody else may have it by now
        Path(lock.lock_file).unlink(missing_ok=True)
        folder.rmdir()


class PartialOutput:
    """Takes the data of ``remaining`` entries in order, in pieces of any size."""

    def __init__(self, folder: Path, layout: Layout, key: str) -> None:
        self._layout = layout
        self.folder = folder / "output"
        """Where the output's files are until it is complete."""
        self.examine: Callable[[Path], None] | None = None
        """Is given that folder when all is written, before it takes its place; what it raises, the conversion does."""
        self._journal_path = folder / "journal"
        self._whole = {part.name: hashlib.sha256(part.header) for part in layout.parts if part.seal is None}
        """Of files whose header is final: their digests so far."""
        self._hashes = self._confirmed(key)
        self.remaining: Sequence[Entry] = layout.entries[len(self._hashes) :]
        self.resumed_bytes = sum(entry.nbytes for entry in layout.entries[: len(self._hashes)])
        """Bytes of the output that an earlier run left."""
        self.sync_seconds = 0.0
        """Time that the file system took to make the data safe."""
        self.folder.mkdir(exist_ok=True)
        self._journal = self._journal_path.open("w", encoding="ascii")
        self._journal.write("".join(f"{line}\n" for line in (key, *map(bytes.hex, self._hashes))))
        self._journal.flush()
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def write(self, data: NDArray[np.uint8], *, ends_entry: bool) -> None:
        """Append ``data`` to the entry whose turn it is."""
        part, at = self._turn()
        if self._file is None:
            self._file = self._continued(part, at)
        self._append(part, data.data)
        if ends_entry:
            entry = part.entries[at]
            hash_ = None if part.name in self._whole else self._digest.digest()
            self._append(part, bytes(part.stored_bytes(entry) - entry.nbytes))
            self._finish_entry(self._file, hash_ or self._whole[part.name].copy().digest())
            if at + 1 == len(part.entries):
                self._file.close()
                self._file = None

    def _append(self, part: Part, data: "memoryview | bytes") -> None:
        assert self._file  # noqa: S101 - opened by who calls
        self._file.write(data)
        self._whole.get(part.name, self._digest).update(data)

    def _finish_entry(self, file: IO[bytes], hash_: bytes) -> None:
        file.flush()  # what the journal promises is in the kernel's hands
        self._hashes.append(hash_)
        self._digest = hashlib.sha256()
        self._journal.write(self._hashes[-1].hex() + "\n")
        self._journal.flush()

    def _turn(self) -> tuple[Part, int]:
        """The part whose turn it is, and the entry's index in it."""
        at = len(self._hashes)
        for part in self._layout.parts:
            if at < len(part.entries):
                return part, at
            at -= len(part.entries)
        raise ValueError("the output is complete")

    def _continued(self, part: Part, n_entries: int) -> IO[bytes]:
        """The part's file, cut back to its header and the first entries."""
        file = self._opened(part, buffering=1 << 20)
        file.write(part.header)
        file.seek(sum(map(part.stored_bytes, part.entries[:n_entries])), os.SEEK_CUR)
        file.truncate()
        return file

    def _opened(self, part: Part, buffering: int = -1) -> IO[bytes]:
        path = self.folder / part.name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("r+b" if path.exists() else "w+b", buffering)

    def seal(self) -> None:
        """Write the final headers and the small files, and wait until everything is on the disk."""
        hashes = iter(self._hashes)
        for part in self._layout.parts:
            own = [next(hashes) for _ in part.entries]
            with self._opened(part) as file:
                file.write(part.seal(part.header, own) if part.seal else part.header)
                self._sync(file)
        self._put(self._layout.files)
        if self._layout.closing:
            self._put(self._layout.closing(self._stored()))

    def _put(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            with (self.folder / name).open("wb") as file:
                file.write(content)
                self._sync(file)

    def _stored(self) -> dict[str, StoredFile]:
        """What was written; files whose headers came last are read again for their hashes."""
        names = [*(part.name for part in self._layout.parts), *self._layout.files]
        return {name: StoredFile((self.folder / name).stat().st_size, self._sha256(name)) for name in names}

    def _sha256(self, name: str) -> str:
        whole = self._whole.get(name)
        return sha256_of(self.folder / name) if whole is None else str(whole.hexdigest())

    def close(self) -> None:
        """Close the files; what was written stays."""
        self._journal.close()
        if self._file:
            self._file.close()

    def _sync(self, file: IO[bytes]) -> None:
        started = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
        self.sync_seconds += time.perf_counter() - started

    def _confirmed(self, key: str) -> list[bytes]:
        """The hashes of the entries that an earlier run of this conversion finished, and left as they still are.

        An entry's own; where the file's header is final, of all from the file's beginning to the entry's end.
        """
        try:
            first, *lines = self._journal_path.read_text("ascii").splitlines()
        except (OSError, ValueError):
            first, lines = "", []
        if first != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            return []
        hashes: list[bytes] = []
        found = iter(lines)
        for part in self._layout.parts:
            offset = len(part.header)
            for entry in part.entries:
                whole = self._whole.get(part.name)
                digest = hashlib.sha256() if whole is None else whole.copy()
                size = entry.nbytes if whole is None else part.stored_bytes(entry)
                is_there = _add(digest, self.folder / part.name, offset, size)
                if not is_there or next(found, None) != digest.hexdigest():
                    return hashes
                if whole is not None:
                    self._whole[part.name] = digest
                hashes.append(digest.digest())
                offset += part.stored_bytes(entry)
        return hashes


def _add(digest: Any, path: Path, offset: int, nbytes: int) -> bool:
    """Update ``digest`` with a stretch of a file; whether it is there whole."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while nbytes and (data := file.read(min(nbytes, 1 << 22))):
                digest.update(data)
                nbytes -= len(data)
    except OSError:
        return False
    return nbytes == 0


def _publish(folder: Path, output: Path, layout: Layout) -> None:
    """Move what is complete to where it belongs; of several parts the first, by which a model is opened, comes last."""
    complete = folder / "output"
    if layout.is_folder:
        for inner in {(complete / name).parent for name in layout.names}:
            sync_folder(inner)
        replace_folder(complete, output, folder / "replaced")
    else:
        for part in reversed(layout.parts):
            windows.move(complete / part.name, output.parent / part.name)
    sync_folder(output.parent)


def _check_names(output: Path, layout: Layout, inputs: Sequence[Path], files: Sequence[Path], force: bool) -> None:
    """Nothing that is read, and nothing that was not asked for, may be replaced."""
    targets = [output] if layout.is_folder else [output.parent / part.name for part in layout.parts]
    _check_portable(output, layout, targets)
    for target in targets:
        check_inputs(target, inputs, files)
        if not target.exists():
            continue
        if target.is_dir() != layout.is_folder:
            kind = "folder" if target.is_dir() else "file"
            raise OutputError(f"{target}: is a {kind}, the output is not", remedy="give another name")
        if not force:
            raise OutputError(f"{target}: already exists", remedy="give another name, or --force to replace it")
        if layout.is_folder:
            _check_contents(target, layout)


def _check_portable(output: Path, layout: Layout, targets: Sequence[Path]) -> None:
    """On Windows names must be files', and nowhere may two files of a folder differ by case alone: it can be moved."""
    written = [partial_folder(output) / "output" / name for name in layout.names]
    for target in targets:
        if why := windows.why_impossible(target, *written):
            raise OutputError(f"{target}: {why}", remedy="give another name")
    seen: dict[str, str] = {}
    for name in layout.names:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise OutputError(
                f"{output}: would hold {other!r} and {name!r}, which are one file on Windows and macOS",
                remedy="rename one of them in the source",
            )


def check_inputs(target: Path, inputs: Sequence[Path], files: Sequence[Path]) -> None:
    """OutputError if ``target`` is one of ``inputs``, a folder that one lies in, or there and one of ``files``."""
    resolved = target.resolve()
    for path in (path.resolve() for path in inputs):
        if resolved == path or _is_other_case(resolved, path):
            raise OutputError(f"{target}: output and input are the same", remedy="give another name")
        if resolved in path.parents:
            raise OutputError(f"{target}: the input lies in the output: {path}", remedy="give another name")
    if resolved.exists() and resolved in (file.resolve() for file in files):
        raise OutputError(f"{target}: is one of the input's files", remedy="give another name")


def _is_other_case(target: Path, path: Path) -> bool:
    """Whether both are one file, whose name is written otherwise: where a file system sees no case."""
    return str(target).casefold() == str(path).casefold() and target.exists() and target.samefile(path)


def _check_contents(folder: Path, layout: Layout) -> None:
    """A folder is replaced as a whole: not if it holds what no conversion writes."""
    written = {*layout.names, *_bundled(folder), *_compiled(folder), *_USUAL_FILES}
    written |= {shard.name for shard in folder.glob(_SHARDS)}
    written |= {parent.as_posix() for name in written for parent in PurePosixPath(name).parents}
    if foreign := _first_other(folder, "", written):
        raise OutputError(
            f"{folder}: holds {foreign!r}, which --force would delete", remedy="give another name, or remove it"
        )


def _first_other(folder: Path, prefix: str, names: Set[str]) -> str | None:
    """The first path in ``folder`` that is not among ``names``."""
    for entry in sorted(folder.iterdir()):
        name = prefix + entry.name
        if name not in names:
            return name
        if entry.is_dir() and (inner := _first_other(entry, f"{name}/", names)):
            return inner
    return None


def _compiled(folder: Path) -> set[str]:
    """What was compiled of the model in ``folder``, and what a compilation that was killed left: it goes with it."""
    inside = folder / compiled.FOLDER
    bundles = [record.parent for record in inside.glob(f"*/{compiled.NAME}")]
    found = {f"{bundle.name}/{name}" for bundle in bundles for name in _bundled(bundle)}
    for left in inside.glob(".*"):
        if left.suffix in (".lock", PARTIAL):
            found |= {file.relative_to(inside).as_posix() for file in (left, *left.rglob("*"))}
    return {compiled.FOLDER, *(f"{compiled.FOLDER}/{name}" for name in found)}


def _bundled(folder: Path) -> set[str]:
    """The files of the bundle that ``folder`` is, if it is one."""
    try:
        return {NAME, *read_manifest(folder).files}
    except ArtifactError:
        return set()


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise OutputError(
            f"{output.parent}: {free:,} bytes are free but the output needs {needed:,}", remedy="make room"
        )
