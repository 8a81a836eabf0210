"""GPT-2's alphabet for bytes: in a byte-level vocabulary each byte of a token's UTF-8 is written as one letter."""


def byte_letters() -> str:
    """The letter that stands for each of the 256 bytes, in order (GPT-2's ``bytes_to_unicode``).

    Printable ones stand for themselves, the others have letters from U+0100 on: a space is U+0120.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))
