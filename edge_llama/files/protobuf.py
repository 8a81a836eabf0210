"""Protocol buffers on the wire, read and written without their schemas: https://protobuf.dev/programming-guides/encoding.

A message is a sequence of fields: a key (the field's number and how its value is stored) and a value.
"""

import struct
from collections.abc import Iterator, Mapping

_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}

Field = memoryview | int
"""A value: an integer, or bytes (text, a message, packed numbers, a number of fixed width)."""


class WireError(ValueError):
    """Bytes that are no protocol buffer, or the beginning of one."""


def fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    """A message's fields in order, by number. WireError where it is damaged."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise WireError("is damaged")
        if size > end - at:
            raise WireError("is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def packed(message: memoryview) -> list[int]:
    """Integers that lie one after another. WireError where they are damaged."""
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The integer at ``at``, and where it ends: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise WireError("is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise WireError("is damaged")


def encode(message: Mapping[int, int | bytes | float]) -> bytes:
    """A message with these fields: numbers as varints, floats in 32 bits, bytes with their length."""
    return b"".join(encode_field(number, value) for number, value in message.items())


def encode_field(number: int, value: int | bytes | float) -> bytes:
    """One field of a message, as :func:`encode` has it."""
    if isinstance(value, bytes):
        return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(value)) + value
    if isinstance(value, float):
        return _encode_varint(number << 3 | 5) + struct.pack("<f", value)
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)


def _encode_varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the eighth bit set on all but the last."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
