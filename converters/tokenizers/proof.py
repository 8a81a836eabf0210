"""The proof of a conversion's tokenizer: a page of text and a chat become the same ids by the source and by the output.

Whoever has an engine hands in how a GGUF vocabulary is opened: this package must know none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.tokenizers.source_encoders import Encoder
from edge_llama.errors import CheckpointError
from edge_llama.files.byte_letters import byte_letters
from edge_llama.files.text_rules import SpacePrefix

PAGE = (
    *(" ", "   ", "\n", "\n\n", "\t", " \n ", "a", " a", "a ", "  a  b   c    ", "\ta\tb\n\n\nc\r\n\r\n"),
    "Hello, world! How are you? I'm fine; they'll say we've been. DON'T! 'S",
    "0 12 123 1234 12345678901234567890 3.14159 1,234,567.89 1e-10 0xFF 2024-07-26T12:34:56Z",
    "naïve café Ünïcödé, decomposed: e\u0301 o\u0308 a\u030a n\u0303, Straße ﬁﬂ ½ ² ＡＢＣ １２３",
    "東京は日本の首都です。 我想在apple工作1314151天～ 안녕하세요 세계",
    "Съешь же ещё этих мягких булок. Ελληνικά: αβγ. مرحبا بالعالم שלום עולם",
    "สวัสดีชาวโลก नमस्ते दुनिया কেমন আছেন কান់",
    "🦙 🦙🦙 👩‍👩‍👧‍👦 🇯🇵🇩🇪 👍🏽 ☺️ a🦙b",
    'def main() -> None:\n    print("hello", {"a": [1, 2]})\n\n\nif x != 3 and y >= 4:  # why\n        return  -1\n',
    "<div class='x'>&amp;</div> [INST] https://example.com/a_b?c=d&e=f#g C:\\dir\\file ------====== ...!!!???",
    "▁ lower ▁blocks▁ and ''''quotes\"\"\" `x` $1 €2 ©® ™ – — … “”",
)
"""Many scripts, white space, digits, accents in one letter and in two, emoji, code: what text is made of."""
TURNS = (("user", "  river stone\n 東京 123 "), ("assistant", "Yes, it's e\u0301."), ("user", "And <b>more</b>?"))
_WORDS, _IN_A_LINE = 400, 20
_SHOWN = 12  # ids in a message
_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a vocabulary makes of texts, in order; None of one that it can't express. ``chat`` is a text and its ids."""

    texts: Sequence[Sequence[int] | None]
    chat: tuple[str, Sequence[int]] | None = None


class GGUFEncoder(Protocol):
    """Opens a GGUF vocabulary with an engine, as it will be run."""

    def __call__(
        self, vocabulary: bytes, texts: Sequence[str], turns: Sequence[tuple[str, str]]
    ) -> tuple[Sequence[Sequence[int] | None], tuple[str, Sequence[int]] | None] | str:
        """What :class:`Encoded` holds of plain ``texts``, and of a chat of ``turns`` by the file's own template.

        ``vocabulary`` is a GGUF file without tensors. A text says why there is no engine. ArtifactError if the engine
        refuses the vocabulary.
        """


def texts_for(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The page, all of it once more in one text, control tokens as plain text, and words all over the vocabulary."""
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    control = [text for text, kind in kinds if kind == TokenType.CONTROL and text.isprintable()][:3]
    marked = "".join(f"a{text}b {text}" for text in control)
    return (*PAGE, "\n".join(PAGE), *([marked] if marked else []), *_words(vocabulary))


def _words(vocabulary: Vocabulary) -> list[str]:
    """Words at even distances, by lines, and some that no merge makes: only those who take words whole have them."""
    normal = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == TokenType.NORMAL]
    words = [_decoded(text, vocabulary.model) for text in normal[:: max(len(normal) // _WORDS, 1)]]
    known = [word for word in words if word]
    lines = ["".join(known[at : at + _IN_A_LINE]) for at in range(0, len(known), _IN_A_LINE)]
    if vocabulary.merges is None:
        return lines
    merged = {merge.replace(" ", "") for merge in vocabulary.merges}
    whole = (_decoded(text, vocabulary.model) for text in normal if len(text) > 1 and text not in merged)
    return lines + list(islice(filter(None, whole), _IN_A_LINE))


def _decoded(text: str, model: str) -> str:
    """A token's text; empty where it is a part of a character."""
    if model == "llama":
        return text.replace("\u2581", " ")
    try:
        return bytes(_BYTES[letter] for letter in text).decode()
    except (KeyError, UnicodeDecodeError):
        return ""


def chat_text(vocabulary: Vocabulary) -> str:
    """A chat for vocabularies whose template nobody renders: turns between the tokens that the template names.

    Where sentencepiece itself finds what the user defined, a chat's are found by who renders it.
    """
    template = vocabulary.chat_templates.get("default", "")
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    is_own = vocabulary.rules.space_prefix is SpacePrefix.EACH
    marks_are = (TokenType.CONTROL,) if is_own else (TokenType.CONTROL, TokenType.USER_DEFINED)
    tokens = [text for text, kind in kinds if kind in marks_are and text.strip()]
    marks = [text for text in tokens if text in template] or tokens[:2]
    return "".join(f"{mark}{role}\n{text}" for mark in marks for role, text in TURNS)


def compare(
    encoder: Encoder, encoded: Encoded, texts: Sequence[str], names: tuple[str, str], unknown: int | None
) -> None:
    """CheckpointError with the first text of which ``encoder`` makes other ids than ``encoded`` has.

    ``names`` say what the two are. Text with an ``unknown`` token is left out: the runtime refuses it.
    """
    for text, ids in zip(texts, encoded.texts, strict=True):
        expected = [] if ids is None else encoder.plain(text)
        if ids is not None and unknown not in expected:
            _check(text, expected, list(ids), names)
    if encoded.chat is not None:
        text, chat_ids = encoded.chat
        _check(text, encoder.chat(text), list(chat_ids), names)


def _check(text: str, left: list[int], right: list[int], names: tuple[str, str]) -> None:
    if left == right:
        return
    pairs = enumerate(zip(left, right, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
    shown = [f"{ids[at : at + _SHOWN]} by {name}" for ids, name in zip((left, right), names, strict=True)]
    raise CheckpointError(
        f"the text {text[:200]!r} would become other tokens than the model was trained with: from token {at} on "
        f"{' but '.join(shown)}",
        remedy="its tokenizer does what the vocabulary that is written can't say: convert for the other engine",
    )
