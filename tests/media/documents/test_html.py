"""HTML to readable text."""

from pathlib import Path

import pytest

from edge_llama import Document, DocumentError

PAGE = """<!DOCTYPE html><html><head><title>On  Llamas</title><style>p { color: red }</style>
<script>alert("hidden")</script></head><body><nav><a href="/">Home</a></nav>
<h1>Llamas</h1><p>They   are <b>calm</b>
&amp; tall&hellip;</p><ul><li>wool<li>milk</ul><table><tr><th>name<th>age</tr><tr><td>Ada</td><td>7</td></tr></table>
<pre>  def f():
      pass</pre><p>Before<br>after <img src=a.png alt="a llama"></p><!-- secret -->
<template>later</template></body></html>"""
TEXT = """# On Llamas

Home

# Llamas

They are calm & tall…

- wool
- milk

name | age

Ada | 7

  def f():
      pass

Before
after [image: a llama]
"""


def opened(path: Path, data: bytes) -> Document:
    path.write_bytes(data)
    return Document.open(path)


def test_a_page_is_what_its_reader_sees(tmp_path: Path) -> None:
    found = opened(tmp_path / "page.html", PAGE.encode())
    assert found.kind == "HTML"
    assert found.text == TEXT
    assert opened(tmp_path / "page", PAGE.encode()).text == TEXT, "known by its beginning"
    assert opened(tmp_path / "page.txt", PAGE.encode()).text == PAGE, "what is called a text is one"


def test_what_is_never_closed_hides_nothing(tmp_path: Path) -> None:
    page = b"<head><title>T</title><body><p>one<div><p>two<ul><li>three"
    assert opened(tmp_path / "a.html", page).text == "# T\n\none\n\ntwo\n\n- three\n"
    assert "after" in opened(tmp_path / "a.html", b"<p>a</pre></p></script></head>after").text


@pytest.mark.parametrize(
    "declared", ['<meta charset="iso-8859-1">', "<meta http-equiv=x content='text/html; charset=latin1'>"]
)
def test_a_page_says_its_encoding(declared: str, tmp_path: Path) -> None:
    found = opened(tmp_path / "a.html", f"{declared}<p>Où, “là”?".encode("cp1252"))
    assert found.text == "Où, “là”?\n"
    assert found.notes == ("encoding: windows-1252, as it says",)
    wrong = opened(tmp_path / "a.html", f"{declared}<p>Où?".encode())
    assert (wrong.text, wrong.notes) == ("Où?\n", ()), "what is UTF-8 is that, whatever it says"
    with pytest.raises(DocumentError, match="no encoding that is known"):
        opened(tmp_path / "a.html", b"<meta charset=klingon><p>\xff")


def test_a_page_of_scripts_has_no_text(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="there is no text in it"):
        opened(tmp_path / "a.html", b"<html><script>var text = 1</script></html>")


def test_damage_that_takes_the_parser_long_ends_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the parser of this Python is quick at it by now, or the process that runs it is ended."""
    monkeypatch.setattr("edge_llama.media.documents.reading.MAX_SECONDS", 5)
    try:
        found = opened(tmp_path / "a.html", b"<p>seen" + b"<!--" * 400_000)
    except DocumentError as error:
        assert "takes more than 5 s" in str(error)  # noqa: PT017
    else:
        assert found.text.startswith("seen")
