"""A text is encoded once, and a cache of such has an end."""

from edge_llama.prompts import encoded_texts
from edge_llama.prompts.encoded_texts import EncodedTexts


def test_what_was_encoded_is_not_encoded_again_and_nobody_shares_a_list() -> None:
    texts, asked = EncodedTexts(), list[str]()

    def ids(text: str, how: str = "") -> list[int]:
        def encode() -> list[int]:
            asked.append(text)
            return list(map(ord, text + how))

        return texts.get(text, how, encode)

    ids("abc").append(1)
    assert ids("abc") == [97, 98, 99]
    assert ids("abc", "d") == [97, 98, 99, 100]
    assert asked == ["abc", "abc"]


def test_the_least_recently_used_goes_when_there_are_too_many() -> None:
    texts, asked = EncodedTexts(), list[str]()
    long = "x" * (encoded_texts._MOST // 3)

    def get(text: str) -> None:
        texts.get(text, None, lambda: asked.append(text) or [])  # type: ignore[func-returns-value]

    for letter in "abacb":
        get(letter + long)
    assert [text[0] for text in asked] == ["a", "b", "c", "b"]
    get("too long" * encoded_texts._MOST)
    get("b" + long)
    assert len(asked) == 5, "what is larger than all room throws nothing out"
