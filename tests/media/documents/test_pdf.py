"""PDFs: their text page by page, and whatever a broken or hostile one may do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from documents import encrypted, pdf

from edge_llama import Document, DocumentError, InputError
from edge_llama.host.child import HELPER_VARIABLE
from edge_llama.media.documents import reading
from edge_llama.media.documents.pdf import read_pdf, runs


def opened(path: Path, data: bytes) -> Document:
    path.write_bytes(data)
    return Document.open(path)


def test_pages_follow_each_other(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.pdf", pdf(["Llamas are calm.", "Alpacas (small) are not."]))
    assert (found.text, found.kind, found.notes) == ("Llamas are calm.\n\nAlpacas (small) are not.\n", "PDF", ())
    assert opened(tmp_path / "called.txt", pdf(["one"])).text == "one\n", "known by what it is"


def test_pages_without_text_are_told(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.pdf", pdf(["one", "", "", "four", ""]))
    assert found.text == "one\n\nfour\n"
    assert found.notes == ("3 of 5 pages have no text: 2 to 3 and 5",)


def test_a_scanned_one_is_an_error_that_says_what_helps(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none of its 12 pages has text: it is scanned, or empty; .*OCR"):
        opened(tmp_path / "a.pdf", pdf([""] * 12))


def test_one_with_a_password_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="encrypted with a password; save it without one"):
        opened(tmp_path / "a.pdf", encrypted(pdf(["secret"]), "the user's"))


def test_one_that_only_its_owner_may_change_is_read(tmp_path: Path) -> None:
    assert opened(tmp_path / "a.pdf", encrypted(pdf(["open to all"]), "")).text == "open to all\n"


def test_ten_thousand_pages_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="10,000 pages, at most 2,000 are read"):
        opened(tmp_path / "a.pdf", pdf(["page"] * 10_000))


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n",
        b"%PDF-1.7\nnothing more",
        pdf(["one"])[:300],
        pdf(["one"]).replace(b"/Pages 2 0 R", b"/Pages 9 0 R"),
        pdf(["one"]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        pdf([]),
    ],
)
def test_a_broken_one_is_a_typed_error(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"a\.pdf: ") as error:
        opened(tmp_path / "a.pdf", data)
    assert "\n" not in str(error.value)
    assert error.value.remedy


def test_any_damage_is_text_or_a_typed_error(rng: np.random.Generator) -> None:
    pytest.importorskip("pypdf")
    whole = pdf(["Llamas are calm.", "Alpacas are not."])
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(8, len(data), 4):
            data[place] = int(rng.integers(0, 256))
        try:
            read_pdf(bytes(data), "a.pdf")
        except DocumentError as error:
            assert "a.pdf" in str(error)  # noqa: PT017


def test_one_that_takes_too_long_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_SECONDS", 4)
    slow = pdf([""] * 50, stream=b"BT /F1 1 Tf (a) Tj ET\n" * 1_000_000)
    assert len(slow) < 5 << 20
    with pytest.raises(DocumentError, match="parsing it takes more than 4 s"):
        opened(tmp_path / "slow.pdf", slow)


def test_one_that_takes_too_much_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MEMORY", 64 << 20)
    large = pdf([""], stream=b"BT (" + b"a" * (60 << 20) + b") Tj ET")
    assert len(large) < 1 << 20
    with pytest.raises(DocumentError, match="takes more memory than 64 MiB"):
        opened(tmp_path / "large.pdf", large)


def test_a_process_that_dies_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\ncat > /dev/null\nkill -ABRT $$\n")
    helper.chmod(0o755)
    monkeypatch.setenv(HELPER_VARIABLE, str(helper))
    with pytest.raises(DocumentError, match="the process that parsed it ended with signal 6"):
        opened(tmp_path / "a.pdf", pdf(["one"]))


def test_a_frozen_program_reads_it_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdf")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert opened(tmp_path / "a.pdf", pdf(["one"])).text == "one\n"
    with pytest.raises(DocumentError, match="scanned"):
        opened(tmp_path / "a.pdf", pdf([""]))
    monkeypatch.setattr(reading, "MAX_SECONDS", 1)
    with pytest.raises(DocumentError, match="takes more than 1 s"):
        opened(tmp_path / "a.pdf", pdf([""] * 3, stream=b"BT /F1 1 Tf (a) Tj ET\n" * 20_000))


def test_without_pypdf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(InputError, match=r'a\.pdf: .*needs the package pypdf; pip install "edge-llama\[documents\]"'):
        read_pdf(pdf(["one"]), "a.pdf")


def test_numbers_in_few_words() -> None:
    assert runs([]) == ""
    assert runs([3]) == "3"
    assert runs([1, 2, 3]) == "1 to 3"
    assert runs([1, 3, 4, 9, 1000, 1001]) == "1, 3 to 4, 9 and 1,000 to 1,001"
