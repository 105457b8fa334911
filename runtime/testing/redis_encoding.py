"""Replies on the wire, in RESP2 and RESP3."""

from __future__ import annotations

from typing import Any, Final

from ._fakeredis import SimpleError, SimpleString

__all__ = ["NULL_ARRAY", "Members", "Pairs", "Push", "Verbatim", "encode"]


class Push(list[Any]):
    """A message that no command asked for; an array in RESP2."""


class Members(list[Any]):
    """The members of a set; an array in RESP2."""


class Pairs(list[Any]):
    """A map in which a key may come twice, as a list of pairs; an array of arrays in RESP2."""


class Verbatim(bytes):
    """A text for people; a bulk string in RESP2."""


class _NullArray:
    """Nothing, where there might be an array: another null than that of strings, in RESP2."""


NULL_ARRAY: Final = _NullArray()


def encode(value: Any, protocol: int) -> bytes:
    """The bytes of one reply. `protocol` is 2 or 3."""
    if value is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    if isinstance(value, bytes) and not isinstance(value, Verbatim):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, bool):
        return (b"#t\r\n" if value else b"#f\r\n") if protocol == 3 else b":%d\r\n" % value
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, SimpleString):
        return b"+%b\r\n" % value.value
    if isinstance(value, SimpleError):
        return b"-%b\r\n" % value.value.replace("\r", " ").replace("\n", " ").encode()
    if isinstance(value, str):
        return encode(value.encode(), protocol)
    if isinstance(value, float):
        text = number(value)
        return b",%b\r\n" % text if protocol == 3 else encode(text, protocol)
    return _encode_compound(value, protocol)


def number(value: float) -> bytes:
    """A double as a server writes it: the shortest digits that give it back."""
    mantissa, _, exponent = repr(value).partition("e")
    if exponent:
        return f"{mantissa}e{int(exponent):+d}".encode()
    return mantissa.removesuffix(".0").encode()


def _encode_compound(value: Any, protocol: int) -> bytes:
    if value is NULL_ARRAY:
        return b"_\r\n" if protocol == 3 else b"*-1\r\n"
    if isinstance(value, Verbatim):
        if protocol == 3:
            return b"=%d\r\ntxt:%b\r\n" % (len(value) + 4, value)
        return encode(bytes(value), protocol)
    if isinstance(value, Pairs) and protocol == 3:
        return b"%%%d\r\n" % len(value) + b"".join(encode(part, protocol) for pair in value for part in pair)
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
        head = b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % len(parts)
        return head + b"".join(encode(part, protocol) for part in parts)
    sign = b"*"
    if protocol == 3:
        sign = b">" if isinstance(value, Push) else b"~" if isinstance(value, (Members, set)) else b"*"
    return b"%b%d\r\n" % (sign, len(value)) + b"".join([encode(part, protocol) for part in value])
