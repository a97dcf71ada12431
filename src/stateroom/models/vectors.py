"""Vectors as they stand in JSON: a list of numbers, or the base64 text of little-endian 32-bit floats. Pure.

A vector goes through as it came wherever it can: numbers are read only to turn one form into the other, or to shorten.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from typing import Final

import msgspec

_NUMBERS: Final = b"0123456789+-.eE,[] \t\r\n"
_BASE64: Final = b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="'


def is_base64(vector: msgspec.Raw) -> bool:
    """Which of the two forms it has. Raises ValueError when it is neither."""
    held = bytes(vector)
    if held[:1] == b"[" and not held.translate(None, _NUMBERS) and held.count(b"[") == 1 and len(held) > 2:
        return False
    if held[:1] == b'"' and not held.translate(None, _BASE64) and len(held) > 2:
        return True
    raise ValueError("a vector that is neither a list of numbers nor base64")


def written(vector: msgspec.Raw, *, as_base64: bool, size: int | None = None) -> msgspec.Raw:
    """The vector in this form, cut to its first `size` numbers and brought back to length 1 if it has more.

    Raises ValueError when it is no vector, TooShort when it has fewer.
    """
    given_base64 = is_base64(vector)
    if size is None and given_base64 == as_base64:
        return vector
    numbers = _read(vector, given_base64)
    if size is not None and size != len(numbers):
        if size > len(numbers):
            raise TooShort(len(numbers))
        numbers = _normal(numbers[:size])
    elif given_base64 == as_base64:
        return vector
    if not as_base64:
        return msgspec.Raw(msgspec.json.encode(numbers.tolist()))
    if sys.byteorder == "big":
        numbers.byteswap()
    return msgspec.Raw(b'"' + base64.b64encode(numbers.tobytes()) + b'"')


class TooShort(Exception):
    """A vector was to be cut to more numbers than it has."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _read(vector: msgspec.Raw, given_base64: bool) -> array[float]:
    numbers = array("f")
    if not given_base64:
        try:
            numbers.extend(msgspec.json.decode(vector, type=list[float]))
        except msgspec.DecodeError as error:
            raise ValueError("a list with something else than numbers") from error
        return numbers
    try:
        numbers.frombytes(base64.b64decode(bytes(vector)[1:-1], validate=True))
    except binascii.Error as error:
        raise ValueError("base64 that cannot be read") from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _normal(numbers: array[float]) -> array[float]:
    length = math.hypot(*numbers)
    if length > 0 and math.isfinite(length):
        return array("f", [number / length for number in numbers])
    return numbers
