"""How much of one text stands in another, told from a few numbers that fit into a file.

A calibration text is not kept in the file that it was used for; 12 KiB of hashes are. Every window of 64 letters and
digits (some 13 words, as GPT-3's authors compared texts, https://arxiv.org/abs/2005.14165, appendix C; spaces, signs
and case don't count) has a hash, and the 2,048 smallest of all are kept: a bottom-k sketch, whose size doesn't depend
on the text's (https://doi.org/10.1109/SEQUEN.1997.666900). Which windows it keeps is decided by what stands in them
and not by where, so that a text is found in another from whatever letter on. Of the default texts that is a window in
sixty; of a text of 100 MB one in 50,000, which still finds a copied document of some size.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import InputError
from edge_llama.fidelity.text import Text

_WINDOW = 64
_KEPT = 2_048
_BYTES = 6
"""Of a hash. 48 bits of a billion windows: by chance one in 100,000 is taken for another."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse modulo 2**64."""
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_BLOCK = 1 << 20
"""Letters whose windows are hashed at once."""


def hashes(texts: Iterable[Text]) -> str:
    """What is kept of texts: at most 2,048 hashes of 48 bits in base64, 16,384 letters.

    Examples:
        >>> from edge_llama.fidelity.texts import default_texts, hashes, overlap
        >>> kept = hashes(default_texts("calibration"))
        >>> len(kept)
        16384
        >>> overlap(default_texts("evaluation"), kept)
        0.0
    """
    found = np.zeros(0, np.uint64)
    for text in texts:
        for block in _hashed(text):
            found = np.unique(np.concatenate((found, block)))[:_KEPT]
    octets = found.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - _BYTES :]
    return base64.b64encode(octets.tobytes()).decode("ascii")


def overlap(evaluation: Sequence[Text], kept: str) -> float:
    """The share of ``evaluation``'s windows that are also in the texts of which ``kept`` are the :func:`hashes`.

    From 0 to 1, estimated by those windows that the hashes can tell of; NaN where there are none, since the text is
    too short beside the other. InputError if ``kept`` is damaged.
    """
    known = _read(kept)
    if not len(known):
        return float("nan")
    largest = known[-1] if len(known) == _KEPT else np.uint64((1 << 8 * _BYTES) - 1)
    windows = np.unique(np.concatenate([np.zeros(0, np.uint64), *(b for text in evaluation for b in _hashed(text))]))
    windows = windows[windows <= largest]
    return float(np.isin(windows, known).mean()) if len(windows) else float("nan")


def _read(kept: str) -> NDArray[np.uint64]:
    try:
        octets = np.frombuffer(base64.b64decode(kept, validate=True), np.uint8).reshape(-1, _BYTES)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"a text's hashes are no base64 of numbers of {_BYTES * 8} bits: {kept!r:.40}") from error
    known = np.zeros(len(octets), np.uint64)
    for column in octets.T:
        known = (known << np.uint64(8)) | column
    if len(known) > _KEPT or (known[1:] <= known[:-1]).any():
        raise InputError(f"a text's hashes are {len(known):,} numbers, expected at most {_KEPT:,} in increasing order")
    return known


def _hashed(text: Text) -> Iterable[NDArray[np.uint64]]:
    """The hashes of all windows, block by block; of a text shorter than a window that of all of it."""
    letters = np.frombuffer("".join(filter(str.isalnum, text.content.casefold())).encode("utf-32-le"), np.uint32)
    if not len(letters):
        return
    if len(letters) < _WINDOW:
        letters = np.pad(letters, (0, _WINDOW - len(letters)))
    for begin in range(0, len(letters) - _WINDOW + 1, _BLOCK):
        yield _windows(letters[begin : begin + _BLOCK + _WINDOW - 1].astype(np.uint64))


def _windows(letters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A polynomial of each window's letters modulo 2**64, by differences of prefix sums; then mixed, 48 bits of it."""
    powers = np.cumprod(np.concatenate((np.ones(1, np.uint64), np.full(len(letters) - 1, _BASE))))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(letters * powers)))
    count = len(letters) - _WINDOW + 1
    inverses = np.cumprod(np.concatenate((np.ones(1, np.uint64), np.full(count - 1, _INVERSE))))
    mixed = (sums[_WINDOW:] - sums[:count]) * inverses
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's end
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    hashed: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(64 - 8 * _BYTES)
    return hashed
