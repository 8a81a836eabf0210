"""Text that arrives in pieces, whose end may be the beginning of a word that is looked for."""


def overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that begins ``word`` and is not all of it."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
