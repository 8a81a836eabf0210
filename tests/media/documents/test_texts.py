"""Text files in any encoding, honestly: what is assumed is told, what is no text is an error."""

import codecs
import hashlib
import os
import random
import sys
from pathlib import Path

import pytest

from edge_llama import Document, DocumentError, InputError, OptionError
from edge_llama.media.documents.document import open_documents
from edge_llama.media.documents.limits import MAX_BYTES, MAX_CHARACTERS

FRENCH = "Où est passée l'île ? « Là-bas », répondit-il, gêné.\n"
POLISH = "Zażółć gęślą jaźń. Wieś była pełna światła, a dzieci śpiewały żółte piosenki o łące.\n"
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. Это предложение знают все.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"


def opened(path: Path, data: bytes) -> Document:
    path.write_bytes(data)
    return Document.open(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", "text"), ("a.py", "text"), ("a", "text"), ("a.md", "Markdown"), ("a.CSV", "CSV"), ("a.tsv", "CSV")],
)
def test_a_text_is_itself(name: str, kind: str, tmp_path: Path) -> None:
    data = f"{FRENCH}{JAPANESE}  def f():\n\treturn '🦙'\n".encode()
    found = opened(tmp_path / name, data)
    assert (found.name, found.kind, found.text, found.notes) == (name, kind, data.decode(), ())
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert Document.open(found) is found
    assert Document.open(str(tmp_path / name)) == found


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_a_mark_says_which_encoding_it_is(encoding: str, mark: bytes, tmp_path: Path) -> None:
    found = opened(tmp_path / "a.txt", mark + (FRENCH + JAPANESE).encode(encoding))
    assert (found.text, found.notes) == (FRENCH + JAPANESE, ())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros_and_told(encoding: str, tmp_path: Path) -> None:
    found = opened(tmp_path / "a.txt", FRENCH.encode(encoding))
    assert found.text == FRENCH
    assert found.notes == (f"encoding: {encoding}, by its bytes: it has no mark",)


def test_a_western_text_is_assumed_to_be_windows_1252(tmp_path: Path) -> None:
    assert opened(tmp_path / "a.txt", "café".encode("cp1252")).text == "café"
    found = opened(tmp_path / "a.txt", (FRENCH * 30).encode("cp1252"))
    assert found.text == FRENCH * 30
    assert found.notes == ("encoding: windows-1252, assumed by its bytes",)


@pytest.mark.parametrize(("text", "encoding"), [(RUSSIAN, "cp1251"), (POLISH, "cp1250"), (JAPANESE, "shift_jis")])
def test_others_are_asked_of_charset_normalizer(text: str, encoding: str, tmp_path: Path) -> None:
    pytest.importorskip("charset_normalizer")
    found = opened(tmp_path / "a.txt", (text * 20).encode(encoding))
    assert found.text == text * 20
    assert "assumed by its bytes" in found.notes[0]


def test_without_it_what_can_t_be_told_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    with pytest.raises(DocumentError, match=r"byte 0 \(0xd1\) is not UTF-8.*can't be told; save it as UTF-8"):
        opened(tmp_path / "a.txt", RUSSIAN.encode("cp1251"))


def test_utf_8_with_a_wrong_byte_is_taken_for_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"it is UTF-8, but byte \d+ \(0xff\) is not"):
        opened(tmp_path / "a.txt", FRENCH.encode() + b"\xff\n")


def test_ends_of_lines_are_line_feeds(tmp_path: Path) -> None:
    assert opened(tmp_path / "a.txt", b"a\r\nb\rc\n").text == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x7fELF" + bytes(200), "is no text: byte 4 is zero"),
        (b"abc\0def", "is no text: byte 3 is zero"),
        (b"a\0b\0c", "is no text"),
        (b"\0\1\2\3", "is no text"),
        (random.Random(1).randbytes(5000).replace(b"\0", b"\1"), "full of control codes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is a picture, no document whose text is read; show it: --image"),
        (b"PK\x05\x06" + bytes(18), "a zip archive, and no docx"),
        (b"\xd0\xcf\x11\xe0" + bytes(99), "an old Office, or one with a password"),
        (b"{\\rtf1 Hello}", "it is RTF"),
        (b"\x1f\x8b\x08rest", "a packed file, no document whose text is read; unpack it"),
        (b"GGUF\3\0\0\0", "it is a model"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", "its mark says utf-16-le, but byte 2"),
        (codecs.BOM_UTF8 + b"a\xff", "its mark says utf-8, but byte 1"),
        (b"", "there is no text in it"),
        (b" \n\t\n", "there is no text in it"),
        (codecs.BOM_UTF8, "there is no text in it"),
    ],
)
def test_binary_called_txt_is_a_typed_error(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as error:
        opened(tmp_path / "notes.txt", data)
    assert said in str(error.value)
    assert "notes.txt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
def test_a_text_called_otherwise_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"is called .*, but is no"):
        opened(tmp_path / name, b"Hello")


def test_a_file_that_is_too_large_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.touch()
    os.truncate(path, MAX_BYTES + 7)
    with pytest.raises(DocumentError, match="67,108,871 bytes, at most 67,108,864 are read"):
        Document.open(path)
    path.write_bytes(b"words " * (MAX_CHARACTERS // 6 + 1))
    with pytest.raises(DocumentError, match="characters of text or more, at most 8,388,608 are taken"):
        Document.open(path)


def test_what_is_no_file_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for wrong, said in {
        tmp_path: "a folder, not a file",
        tmp_path / "nowhere.txt": "No such file",
        tmp_path / "pipe.txt": "a FIFO, not a file",
        "https://example.org/a.txt": "a URL where a file is expected",
        "a\0b": "null",
    }.items():
        with pytest.raises(InputError, match=said):
            Document.open(wrong)
    with pytest.raises(OptionError, match="given as int"):
        Document.open(7)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"files is str, expected a list; for one: files=\[path\]"):
        open_documents("notes.txt")


def test_names_may_be_any(tmp_path: Path) -> None:
    for name in ("mit Leerzeichen und ä.txt", "neue\nZeile.txt"):
        assert opened(tmp_path / name, b"Hello").name == name


def test_a_text_that_is_no_file_has_a_name_too() -> None:
    found = Document.from_text("Hello", "pasted")
    assert (found.name, found.text, found.kind) == ("pasted", "Hello", "text")
    with pytest.raises(DocumentError, match="pasted: there is no text"):
        Document.from_text(" ", "pasted")
