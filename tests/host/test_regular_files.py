"""What would be waited for is refused, and everything that a path of the user's names is opened by the one function."""

import ast
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_llama.host.regular_files import content_of, opened, text_of, why_no_file

ROOT = Path(__file__).resolve().parent.parent.parent
OWN_FILES = {
    "edge_llama/backends/device_names.py",
    "edge_llama/backends/llama_cpp/vocabulary_probe.py",
    "edge_llama/backends/onnxruntime/prepacked.py",
    "edge_llama/host/devices.py",
    "edge_llama/host/regular_files.py",
    "edge_llama/host/user_cache.py",
    "edge_llama/media/images.py",
    "edge_llama/server/page_routes.py",
    "edge_llama/server/store.py",
    "converters/output.py",
    "quant/compiled/cache.py",
}
"""What reads files that we wrote, that the system has, or that were just found regular."""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="FIFOs and sockets in folders")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    with opened(path) as file:
        assert (file.read(3), file.seek(0, os.SEEK_END)) == (b"one", 15)
    with opened(path, buffering=0) as file:
        assert file.readinto(bytearray(4)) == 4
    assert content_of(path) == b"one\r\ntwo\rthree\n"
    assert text_of(path, "utf-8") == path.read_text("utf-8") == "one\ntwo\nthree\n"
    assert why_no_file(path) == why_no_file(tmp_path) == why_no_file(tmp_path / "nothing") == ""


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    server = socket.socket(socket.AF_UNIX)
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with server:
        assert why_no_file(path) == f"{kind}, not a file"
        for read in (opened, content_of, lambda path: text_of(path, "utf-8", may_be_piped=True)):
            with pytest.raises(OSError, match=kind):
                read(path)


def test_folders_and_circles_are_the_errors_that_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        opened(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "nothing")


def test_a_file_that_becomes_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """A link that another thread has lead now here, now there: whenever it is looked at, nobody waits for a writer."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    path, is_over, seen = tmp_path / "link", threading.Event(), set[str]()
    path.symlink_to("file")

    def change() -> None:
        while not is_over.is_set():
            for name in ("fifo", "file"):
                (tmp_path / "next").symlink_to(name)
                (tmp_path / "next").replace(path)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        while not seen >= {"file", "fifo"}:
            for _ in range(500):
                try:
                    seen.add("file" if content_of(path) == b"x" else "other")
                except OSError as error:
                    seen.add("fifo" if error.strerror == "a FIFO, not a file" else str(error))
    finally:
        is_over.set()
        changing.join()
    assert seen == {"file", "fifo"}


def test_the_pipe_of_a_shell_is_read_where_it_may_be_one() -> None:
    reading, writing = os.pipe()
    path = Path(f"/dev/fd/{reading}")
    threading.Thread(target=lambda: (os.write(writing, b"text"), os.close(writing))).start()
    with pytest.raises(OSError, match="a FIFO"):
        text_of(path, "utf-8")
    assert text_of(path, "utf-8", may_be_piped=True) == "text"
    os.close(reading)


def test_all_else_is_opened_by_the_one_function() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("edge_llama", "converters", "quant")
        for path in (ROOT / folder).rglob("*.py")
        if path.relative_to(ROOT).as_posix() not in OWN_FILES
        for line in _reads(path)
    }
    assert not found


def _reads(path: Path) -> Iterator[int]:
    """Lines where a method of a path reads its file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        mode = node.args[0] if node.args else None
        reads = node.func.attr == "open" and isinstance(mode, ast.Constant) and mode.value in ("r", "rb")
        if reads or node.func.attr in ("read_bytes", "read_text"):
            yield node.lineno
