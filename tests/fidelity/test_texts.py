"""The texts that are measured with: the default ones, a person's own, their chunks, and what one has of another."""

import os
import random
import re
import unicodedata
from pathlib import Path

import default_text_tables
import numpy as np
import pytest
from default_text_sources import GENERATED, OWN, SOURCES
from hypothesis import given
from hypothesis import strategies as st

from edge_llama.errors import DocumentError, InputError, OptionError
from edge_llama.fidelity import overlaps
from edge_llama.fidelity.texts import (
    Text,
    as_chats,
    chunks,
    cut,
    default_texts,
    fingerprint,
    hashes,
    overlap,
    passages,
    prompts,
    read_text,
)

DATA = Path(overlaps.__file__).parent / "data"
HALVES = ("calibration", "evaluation")
SCRIPTS = ("ARABIC", "CJK", "CYRILLIC", "DEVANAGARI", "GREEK", "HANGUL", "HEBREW", "HIRAGANA", "LATIN", "THAI")


def windows(texts: list[Text]) -> np.ndarray:
    return np.unique(np.concatenate([block for text in texts for block in overlaps._hashed(text)]))


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("half", HALVES)
def test_default_texts_are_whole_and_of_every_domain_and_script(half: str) -> None:
    texts = default_texts(half)
    names = [f"{text.domain}.{text.name}.txt" for text in texts]
    assert names == sorted(path.name for path in (DATA / half).iterdir())
    assert {text.domain for text in texts} == {
        *("code", "dialogue", "encyclopaedic", "formal", "languages", "mathematics", "prose", "scripts")
    }
    letters = "".join(text.content for text in texts)
    assert "\ufffd" not in letters
    found = {unicodedata.name(letter).split(" ")[0].split("-")[0] for letter in set(letters) if letter.isalpha()}
    assert set(SCRIPTS) - found == set()
    assert all(1_500 < len(text.content.encode()) < 16_000 for text in texts)
    assert 100_000 < sum(len(text.content.encode()) for text in texts) < 250_000


def test_no_window_of_one_half_is_in_the_other() -> None:
    calibration, evaluation = map(default_texts, HALVES)
    assert not np.isin(windows(evaluation), windows(calibration)).any()
    assert overlap(evaluation, hashes(calibration)) == 0
    assert {text.sha256 for text in calibration}.isdisjoint(text.sha256 for text in evaluation)
    of_halves = [{(s.package, file, s.begin) for s in SOURCES if s.half == half for file in s.files} for half in HALVES]
    assert of_halves[0].isdisjoint(of_halves[1])


def test_every_default_text_has_its_source_and_licence() -> None:
    page = (DATA / "LICENCES.md").read_text("utf-8")
    sections = re.split(r"^## The (\w+) half$", page, flags=re.MULTILINE)
    rows = {
        (half, cells[0]): cells
        for half, section in zip(sections[1::2], sections[2::2], strict=True)
        for line in section.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5 and cells[0].endswith(".txt")
    }
    files = {(half, path.name): path for half in HALVES for path in (DATA / half).iterdir()}
    assert rows.keys() == files.keys()
    assert {f"{half}/{name}" for half, name in files} == {*(s.path for s in SOURCES), *OWN, *GENERATED}
    for key, (_, size, source, licence, holders) in rows.items():
        assert int(size.replace(",", "")) == len(files[key].read_text("utf-8").encode())
        assert source
        assert holders
        name = licence.partition(" (")[0]
        assert name == "public domain" or f"**{name}**" in page, f"{key}: the text of {name} is not on the page"
        assert not re.match("GPL|GFDL|AGPL", name)


@pytest.mark.parametrize("half", HALVES)
def test_tables_are_what_the_script_computes(half: str) -> None:
    assert (DATA / half / "mathematics.tables.txt").read_text("utf-8") == getattr(default_text_tables, half)()


def test_prompts_are_questions_in_several_languages() -> None:
    assert len(prompts()) == len(set(prompts())) == 20
    assert not any(prompt.startswith("#") or not prompt.strip() for prompt in prompts())


def test_a_text_is_found_in_itself_and_within_another() -> None:
    words = [f"{number:x}{number * 7919 % 1009:x}" for number in range(3_000)]
    draw = random.Random(24)
    first, second = (Text(name, "own", " ".join(draw.choices(words, k=30_000))) for name in "ab")
    kept = hashes([first])
    assert len(kept) == 16_384
    assert overlap([first], kept) == 1
    assert overlap([second], kept) == 0
    mixed = Text("c", "own", second.content[:80_000].upper() + "\n\n" + first.content[4_321 : 4_321 + 80_000])
    assert abs(overlap([mixed], kept) - 0.5) < 0.05
    assert abs(overlap([second, first], kept) - 0.5) < 0.05


def test_hashes_do_not_depend_on_how_a_text_is_set() -> None:
    text = default_texts("evaluation")[0]
    other = Text("x", "own", re.sub(r"\s+", "\n\n", text.content.upper()))
    assert hashes([text]) == hashes([other])


def test_blocks_of_a_long_text_hash_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = default_texts("evaluation")
    whole = hashes(texts)
    monkeypatch.setattr(overlaps, "_BLOCK", 777)
    assert hashes(texts) == whole


def test_short_texts_and_none() -> None:
    short = Text("s", "own", "A few words.")
    assert overlap([short], hashes([short])) == 1
    assert overlap([Text("t", "own", "Other words.")], hashes([short])) == 0
    assert np.isnan(overlap([short], hashes([])))
    assert np.isnan(overlap([Text("empty", "own", "…")], hashes([short])))


@pytest.mark.parametrize(
    "kept", ["?", "AAAA", "AAAAAAAB" * 2, "AAAAAAAC" + "AAAAAAAB", "é", "AAAAAAAB" + "A" * 8 * 2048]
)
def test_damaged_hashes_are_refused(kept: str) -> None:
    with pytest.raises(InputError, match="a text's hashes are"):
        overlap(default_texts("evaluation")[:1], kept)


def test_fingerprints_are_of_contents_in_their_order() -> None:
    one, two = Text("a", "prose", "one"), Text("b", "code", "two")
    assert fingerprint([one, two]) == fingerprint([Text("x", "own", "one"), Text("y", "own", "two")])
    assert len({fingerprint(texts) for texts in ([one, two], [two, one], [one], [Text("a", "own", "onetwo")])}) == 4
    assert re.fullmatch("[0-9a-f]{64}", fingerprint([]))


def test_each_text_is_cut_on_its_own_and_the_rest_is_told() -> None:
    texts = [Text("a", "prose", "0123456789"), Text("b", "code", "ab"), Text("c", "code", "abcdef")]
    found = chunks(texts, bytes_of, 4, bos=1)
    assert [(c.text, c.domain, list(c.ids)) for c in found.chunks] == [
        ("a", "prose", [1, *b"012"]),
        ("a", "prose", [1, *b"345"]),
        ("a", "prose", [1, *b"678"]),
        ("c", "code", [1, *b"abc"]),
        ("c", "code", [1, *b"def"]),
    ]
    assert (found.left_over, found.n_left_over) == ({"a": 1, "b": 2}, 3)
    assert [list(c.ids) for c in chunks(texts, bytes_of, 5, bos=None).chunks][1] == [*b"56789"]


@given(st.lists(st.text(max_size=90), max_size=5), st.integers(2, 20), st.booleans())
def test_no_token_is_lost(contents: list[str], n_ctx: int, has_bos: bool) -> None:
    texts = [Text(str(number), "own", content) for number, content in enumerate(contents)]
    bos = 256 if has_bos else None
    try:
        found = chunks(texts, bytes_of, n_ctx, bos=bos)
    except DocumentError:
        assert all(len(content.encode()) < n_ctx - has_bos for content in contents)
        return
    for text in texts:
        ids = [i for chunk in found.chunks if chunk.text == text.name for i in chunk.ids if i != 256]
        assert len(ids) + found.left_over.get(text.name, 0) == len(bytes_of(text.content))
        assert ids == bytes_of(text.content)[: len(ids)]
    assert all(len(chunk.ids) == n_ctx for chunk in found.chunks)


def test_texts_too_short_and_chunks_too_small() -> None:
    with pytest.raises(DocumentError, match=r"too short: a chunk takes 511 tokens, the longest text has 3"):
        chunks([Text("a", "own", "abc")], bytes_of, 512, bos=0)
    with pytest.raises(DocumentError, match="the longest text has 0"):
        chunks([], bytes_of, 512, bos=None)
    with pytest.raises(OptionError, match="a chunk of 1 tokens, expected at least 2"):
        chunks([Text("a", "own", "abc")], bytes_of, 1, bos=0)


@given(st.text(alphabet="ab .\n。", max_size=400), st.integers(8, 60))
def test_passages_are_the_text(content: str, most: int) -> None:
    found = list(passages(content, most))
    assert all(0 < len(passage) <= most for passage in found)
    assert "".join("".join(found).split()) == "".join(content.split())


def test_chats_go_through_a_template_passage_by_passage() -> None:
    texts = default_texts("calibration")[:2]
    encoded = list(as_chats(texts, lambda passage: [1, *bytes_of(passage), 2]))
    for text, ids in zip(texts, encoded, strict=True):
        turns = bytes(i for i in ids.ids if i > 2).decode()
        assert "".join(turns.split()) == "".join(text.content.split())
        assert (ids.ids == 1).sum() == (ids.ids == 2).sum() == len(list(passages(text.content))) > 1
    assert cut(encoded, 64, bos=None).chunks[0].ids[0] == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_is_read(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(mark + "eins\r\nzwei – drei\rvier\n".encode())
    assert read_text(path) == Text("mine.txt", "own", "eins\nzwei – drei\nvier\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "there is no text in it"),
        (b" \r\n\t\n", "there is no text in it"),
        (b"text\0and more", "is no text: byte 4 is zero"),
        (b"GGUF\x03\x00\x00\x00", "is no text: byte 5 is zero"),
        (b"na\xefve", r"byte 2 \(0xef\) is not UTF-8; save it as UTF-8"),
        (b"\xef\xbb\xbfna\xefve", r"byte 5 \(0xef\) is not UTF-8"),
        ("ä".encode() * 600 + b"\xff", r"byte 1,200 \(0xff\) is not UTF-8"),
        ("text".encode("utf-16"), "its first bytes say UTF-16; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(DocumentError, match=rf"{re.escape(str(path))}: {said}"):
        read_text(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="is a folder; name the files in it"):
        read_text(tmp_path)
    with pytest.raises(DocumentError, match="no such file"):
        read_text(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(DocumentError, match="a FIFO, not a file"):
            read_text(tmp_path / "fifo")
