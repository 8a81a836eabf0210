"""docx by the standard library: its text, and what a hostile one may try."""

import io
import random
import zipfile
from pathlib import Path

import pytest
from documents import NAMESPACE, docx, packed, paragraph

from edge_llama import Document, DocumentError
from edge_llama.media.documents.docx import is_docx, read_docx

CELLS = "<w:tbl><w:tr><w:tc>{}</w:tc><w:tc>{}</w:tc></w:tr><w:tr><w:tc>{}</w:tc><w:tc>{}</w:tc></w:tr></w:tbl>"
BODY = (
    paragraph("On llamas", "Title")
    + paragraph("Wool &amp; milk", "Heading2")
    + paragraph("They are ")
    + '<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/></w:numPr></w:pPr><w:r><w:t>calm</w:t><w:tab/><w:t>tall</w:t></w:r>'
    + "</w:p>"
    + "<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>"
    + CELLS.format(*map(paragraph, ("name", "age", "Ada", "7")))
    + "<w:p><w:r><w:t>one</w:t><w:br/><w:t>two</w:t><w:instrText>PAGE</w:instrText></w:r></w:p>"
)


def opened(path: Path, data: bytes) -> Document:
    path.write_bytes(data)
    return Document.open(path)


def test_its_text_is_in_order(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.docx", docx(BODY))
    assert found.kind == "docx"
    assert found.notes == ()
    lines = [line.strip() for line in found.text.splitlines() if line.strip()]
    assert lines == [
        "# On llamas",
        "## Wool & milk",
        "They are",
        "- calm\ttall",
        "new",
        "name  | age",
        "Ada  | 7",
        "one",
        "two",
    ]
    assert opened(tmp_path / "called.txt", docx(BODY)).text == found.text, "known by what is in it"


def test_footnotes_are_at_the_end_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    footnotes = f'<w:footnotes xmlns:w="{NAMESPACE}"><w:footnote>{paragraph("the note")}</w:footnote></w:footnotes>'
    others = {"word/footnotes.xml": footnotes, "word/header1.xml": "<x/>"}
    found = opened(tmp_path / "a.docx", docx(paragraph("text"), others))
    assert found.text == "text\n\nthe note\n"
    assert found.notes == ("headers, footers and comments are left out",)


def test_a_zip_bomb_is_refused_with_both_numbers(tmp_path: Path) -> None:
    bomb = docx(paragraph("a" * (200 << 20)))
    assert len(bomb) < 1 << 20
    with pytest.raises(DocumentError, match=r"unpacks to 209,\d{3},\d{3} bytes, at most 67,108,864 are read"):
        opened(tmp_path / "bomb.docx", bomb)


def test_a_zip_that_lies_about_its_size_is_read_no_further(tmp_path: Path) -> None:
    bomb = docx(paragraph("a" * (200 << 20)))
    at = bomb.rindex(b"PK\x01\x02", 0, bomb.rindex(b"word/document.xml"))
    lying = bomb[: at + 24] + (1000).to_bytes(4, "little") + bomb[at + 28 :]
    with zipfile.ZipFile(io.BytesIO(lying)) as archive:
        assert archive.getinfo("word/document.xml").file_size == 1000
    with pytest.raises(DocumentError, match=r"damaged docx|unpacks to|is no XML"):
        opened(tmp_path / "lying.docx", lying)


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE w [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE w SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE w [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_entities_can_t_be_defined(declaration: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="has a document type"):
        opened(tmp_path / "a.docx", docx(paragraph("text"), before=declaration))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (docx(paragraph("text"))[:-30], "damaged docx"),
        (packed({"word/document.xml": "<w:document"}), "is no XML"),
        (packed({"word/document.xml": ""}), "is no XML"),
        (packed({"word/document.xml": "<a/>"}), "there is no text in it"),
        (packed({"xl/workbook.xml": "<a/>"}), "a zip archive, and no docx"),
    ],
)
def test_a_damaged_one_is_a_typed_error(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=said):
        opened(tmp_path / "a.docx", data)


def test_too_much_nesting_is_no_crash(tmp_path: Path) -> None:
    body = "<w:p>" * 100_000 + "<w:r><w:t>deep</w:t></w:r>" + "</w:p>" * 100_000
    assert "deep" in opened(tmp_path / "a.docx", docx(body)).text


def test_any_damage_is_text_or_a_typed_error(rng: random.Random) -> None:
    whole = docx(BODY)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(0, 256))
        if is_docx(bytes(data)):
            try:
                read_docx(bytes(data), "a.docx")
            except DocumentError as error:
                assert "a.docx" in str(error)  # noqa: PT017
