"""Protocol buffers on the wire: what is written is read again, and anything else is an error."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_llama.files.protobuf import WireError, encode, fields, packed

VALUES = st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=300))


@given(st.dictionaries(st.integers(1, 2**20), VALUES, max_size=8))
def test_a_message_survives(message: dict[int, int | bytes]) -> None:
    found = {
        number: value if isinstance(value, int) else bytes(value)
        for number, value in fields(memoryview(encode(message)))
    }
    assert found == message


def test_a_float_has_32_bits() -> None:
    assert encode({2: -1.5}) == b"\x15\x00\x00\xc0\xbf"
    assert [(number, bytes(value)) for number, value in fields(memoryview(b"\x15\x00\x00\xc0\xbf"))] == [  # type: ignore[arg-type]
        (2, b"\x00\x00\xc0\xbf")
    ]


def test_packed_integers_lie_one_after_another() -> None:
    assert packed(memoryview(b"\x01\x80\x01\x7f")) == [1, 128, 127]


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(raw: bytes) -> None:
    with suppress(WireError):
        assert all(number >= 0 for number, _ in fields(memoryview(raw)))


@pytest.mark.parametrize("raw", [b"\x08", b"\x0a\x05abc", b"\x0b", b"\x08" + b"\xff" * 10, b"\x0d\x00"])
def test_what_is_no_message_is_an_error(raw: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(memoryview(raw)))
