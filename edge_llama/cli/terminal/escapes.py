"""Control characters in text for a terminal, which could command it."""

_UNSAFE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t\r"} | {
    ord("\r"): None
}


def harmless(text: str) -> str:
    """``text`` for a terminal: control characters, which could command it, become escapes that can be read."""
    return text.translate(_UNSAFE)
