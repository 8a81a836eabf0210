"""Bytes to text, honestly: a mark, else UTF-8, else UTF-16 by its zeros, else a guess that is told.

What no 8-bit encoding can prove is assumed from how the bytes above 127 stand: few among ASCII letters, as in Western
European texts, are windows-1252 (the web's reading of Latin-1, https://encoding.spec.whatwg.org), unless that has signs
within words. All others are asked of charset-normalizer, if it is installed, which takes Western texts for Central
European ones now and then. Else it is an error: a text of wrong letters helps nobody.
"""

import codecs
import re
import string

from edge_llama.errors import DocumentError
from edge_llama.media.documents.limits import Extracted

_MARKS = (  # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 64 << 10
"""Bytes by which a guess is made."""
_FEW = 3
"""Of a Western text's letters one in so many is above 127 at most: French has 4 %, German 2 %, Icelandic 13 %."""
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""What texts have next to none of. The escape character, backspace and form feeds are in logs and old files."""
_UNDEFINED_IN_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_SIGN_IN_WORD = re.compile(r"[a-z][\xa1-\xa9\xac-\xb4\xb6\xb8\xb9\xbb-\xbf\xd7\xf7][a-z]", re.IGNORECASE)
_HIGH = bytes(range(128, 256))
_LETTERS = string.ascii_letters.encode()
_AS_TEXT = "save it as UTF-8"


def decoded(data: bytes, name: str, declared: str | None = None) -> Extracted:
    """The text of ``data`` with line feeds at its lines' ends, and a note of what was assumed of its encoding.

    ``declared`` is what the document itself says, which counts after a mark and before any guess. DocumentError for
    binary data, bytes that the encoding has not, or an encoding that can't be told.
    """
    text, note = _decoded(data, name, declared)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Extracted(text, (note,) if note else ())


def _decoded(data: bytes, name: str, declared: str | None) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strictly(data[len(mark) :], encoding, f"{name}: its mark says {encoding}"), ""
    if b"\0" in data:
        return _without_mark(data, name)
    if declared and not _is_utf8(data):
        text = _strictly(data, declared, f"{name}: it says of itself that it is {declared}")
        return text, f"encoding: {_called(declared)}, as it says"
    try:
        return data.decode(), ""
    except UnicodeDecodeError as error:
        return _guessed(data, name, error.start)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strictly(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}, but byte {error.start:,} (0x{data[error.start]:02x}) is not of it", remedy=_AS_TEXT
        ) from error
    except (LookupError, UnicodeError) as error:
        raise DocumentError(f"{where}, which is no encoding that is known", remedy=_AS_TEXT) from error


def _without_mark(data: bytes, name: str) -> tuple[str, str]:
    """UTF-16 without a mark has a zero beside every Latin letter, on one side; text of it has no other zeros."""
    sample = data[: _SAMPLE & ~1]
    zeros = [sample[side::2].count(0) for side in (0, 1)]
    side, encoding = (1, "utf-16-le") if zeros[1] >= zeros[0] else (0, "utf-16-be")
    if zeros[side] * 5 >= len(sample) and not zeros[1 - side] and len(data) % 2 == 0:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            pass
        else:
            if not _CONTROL.search(text.encode()):
                return text, f"encoding: {encoding}, by its bytes: it has no mark"
    place = data.index(0)
    raise DocumentError(f"{name}: is no text: byte {place:,} is zero", remedy="give a document")


def _guessed(data: bytes, name: str, place: int) -> tuple[str, str]:
    """``place`` is the first byte that is not UTF-8."""
    byte = f"byte {place:,} (0x{data[place]:02x})"
    sample = data[:_SAMPLE]
    if len(_CONTROL.findall(sample)) * 1000 > len(sample):
        raise DocumentError(
            f"{name}: is no text: {byte} is not UTF-8, and it is full of control codes", remedy=_AS_TEXT
        )
    if _is_mostly_utf8(data):
        raise DocumentError(f"{name}: it is UTF-8, but {byte} is not", remedy="get it again, or save it as UTF-8")
    high, letters = _count(data, _HIGH), _count(data, _LETTERS)
    is_western = high * _FEW <= high + letters and _reads_as_1252(data)
    if (encoding := "cp1252" if is_western else _likeliest(data)) is None:
        raise DocumentError(f"{name}: {byte} is not UTF-8, and which encoding it has can't be told", remedy=_AS_TEXT)
    return data.decode(encoding), f"encoding: {_called(encoding)}, assumed by its bytes"


def _reads_as_1252(data: bytes) -> bool:
    """Whether it has no signs amid words, where other encodings have their letters."""
    return not _UNDEFINED_IN_1252.search(data) and not _SIGN_IN_WORD.search(data[:_SAMPLE].decode("cp1252"))


def _count(data: bytes, bytes_: bytes) -> int:
    """How many of these bytes there are."""
    return len(data) - len(data.translate(None, bytes_))


def _is_mostly_utf8(data: bytes) -> bool:
    """Whether more characters above ASCII are right than wrong: it is damaged, and of no other encoding."""
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return len(text) - len(text.encode("ascii", "ignore")) - wrong > wrong


def _likeliest(data: bytes) -> str | None:
    """charset-normalizer's choice, if it is installed, has one, and the whole document is of it."""
    try:
        from charset_normalizer import from_bytes  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    best = from_bytes(data[: data.rfind(b"\n", 0, _SAMPLE) + 1] or data[:_SAMPLE]).best()
    if best is None or best.encoding in {"utf_16_le", "utf_16_be", "utf_32", "utf_7", "ascii"}:
        return None
    try:
        data.decode(best.encoding)
    except UnicodeDecodeError:
        return None
    return best.encoding


def _called(encoding: str) -> str:
    """A Python codec by the name that people know."""
    return re.sub(r"\Acp(125\d)\Z", r"windows-\1", encoding).replace("_", "-")
