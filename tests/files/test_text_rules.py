"""Rules of a vocabulary that GGUF has no key for: written and read alike, and errors that name the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from edge_llama.errors import ArtifactError
from edge_llama.files.gguf import Value, ValueType, array, boolean, encode_header, read_header, string, u32
from edge_llama.files.text_rules import PLAIN, PREFIX, SpacePrefix, TextRules, cut_step, cut_words, from_gguf, to_gguf

RULES = [
    PLAIN,
    *(TextRules(prefix) for prefix in SpacePrefix),
    TextRules(unicode_forms=("NFD", "NFC"), merges_spaces=True),
    TextRules(SpacePrefix.METASPACE_FIRST, ("NFKC",), merges_spaces=True, lstrip=(3,), rstrip=(1, 4)),
]


def file(folder: Path, fields: dict[str, Value]) -> Path:
    path = folder / "vocabulary.gguf"
    path.write_bytes(encode_header({"general.architecture": string("llama"), **fields}, [])[0])
    return path


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_what_is_written_is_read(rules: TextRules, tmp_path: Path) -> None:
    fields = to_gguf(rules)
    assert from_gguf(read_header(file(tmp_path, fields)), 5) == rules
    assert bool(fields) == (rules != PLAIN)


BAD: dict[str, tuple[str, Value]] = {
    "an unknown place": ("space_prefix", string("last")),
    "a number for a place": ("space_prefix", u32(1)),
    "an unknown form": ("unicode_forms", array(ValueType.STRING, ["NFC", "NFX"])),
    "forms that are numbers": ("unicode_forms", array(ValueType.UINT32, [1])),
    "one form": ("unicode_forms", string("NFC")),
    "a flag that is text": ("merges_spaces", string("yes")),
    "a token past the vocabulary": ("lstrip", array(ValueType.UINT32, [4, 5])),
    "signed tokens": ("rstrip", array(ValueType.INT32, [-1])),
    "a flag for tokens": ("rstrip", boolean(True)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_rule_is_told_by_its_key(name: str, tmp_path: Path) -> None:
    key, value = BAD[name]
    path = file(tmp_path, {PREFIX + key: value})
    with refusal(ArtifactError, PREFIX + key, path):
        from_gguf(read_header(path), 5)


@given(words=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True))
def test_words_that_a_step_cuts_are_read_from_it(words: list[str]) -> None:
    assert set(cut_words(cut_step(words))) == set(words)


def test_other_steps_cut_no_words() -> None:
    step = cut_step(["a|b", "c"])
    for other in (
        {**step, "behavior": "Removed"},
        {**step, "invert": True},
        {**step, "pattern": {"Regex": "a+|b"}},
        {},
    ):
        assert cut_words(other) == []
