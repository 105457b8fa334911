"""Commands on keys that fakeredis lacks or answers differently from a real server."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from ._fakeredis import CommandItem, Int, Signature, SimpleError, messages, signature

__all__ = ["FIXED_COMMANDS", "FixedCommands", "correct"]

_TEXTS: Final = (
    (r"ERR (BUSYGROUP .*)", r"\1"),
    (r"ERR invalid expire time in (\w+)", r"ERR invalid expire time in '\1' command"),
    (r"(RANK can't be zero: .*)", r"ERR \1"),
    (r"NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT No matching script."),
)
_NUMBER: Final = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INFINITE: Final = re.compile(rb"[+-]?(inf(inity)?|nan)", re.IGNORECASE)


def correct(text: str) -> str:
    """An error line of fakeredis as a real server writes it."""
    for pattern, right in _TEXTS:
        if re.fullmatch(pattern, text):
            return re.sub(pattern, right, text)
    return text


class _Lua:
    """A Lua runtime that collects its garbage now and then: to do it after each script takes longer than the script."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._scripts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def execute(self, code: Any) -> Any:
        if code == "collectgarbage()":
            self._scripts += 1
            if self._scripts % 200:
                return None
        return self._runtime.execute(code)


class FixedCommands:
    """The commands, for a session."""

    _db: Any
    _blocking: Any
    _server: Any
    _db_num: int

    def touch(self, *keys: Any) -> int:
        return sum(1 for key in keys if key)

    def copy(self, key: Any, target: Any, *words: bytes) -> int:
        """fakeredis lets both keys share one value."""
        copied: int = super().copy(key, target, *words)  # type: ignore[misc]
        if copied:
            del target.db[target.key]
            target.value = copy.deepcopy(key.value)
            target.expireat = key.expireat
        return copied

    def incrbyfloat(self, key: Any, word: bytes) -> bytes:
        """In the precision of a server's long double."""
        if key.value is not None and not isinstance(key.value, bytes):
            raise SimpleError(messages.WRONGTYPE_MSG)
        result = _add_floats(b"0" if key.value is None else key.value, word, "ERR value is not a valid float")
        key.update(result)
        return result

    def hincrbyfloat(self, key: Any, field: bytes, word: bytes) -> bytes:
        """In the precision of a server's long double."""
        result = _add_floats(key.value.get(field, b"0"), word, "ERR hash value is not a float")
        key.value[field] = result
        key.updated()
        return result

    def lmove(self, source: bytes, target: bytes, take: bytes, give: bytes) -> Any:
        return self._move(source, target, _is_left(take), _is_left(give), first=True)

    def rpoplpush(self, source: bytes, target: bytes) -> Any:
        return self._move(source, target, False, True, first=True)

    def blmove(self, source: bytes, target: bytes, take: bytes, give: bytes, limit: bytes) -> Any:
        """fakeredis does not block."""
        ends = _is_left(take), _is_left(give)
        return self._blocking(_seconds(limit), lambda first: self._move(source, target, *ends, first=first))

    def brpoplpush(self, source: bytes, target: bytes, limit: bytes) -> Any:
        return self._blocking(_seconds(limit), lambda first: self._move(source, target, False, True, first=first))

    def _lmpop(self, keys: Sequence[bytes], count: int, left: bool, first: bool) -> list[Any] | None:
        """fakeredis leaves an emptied list behind."""
        found: list[Any] | None = super()._lmpop(keys, count, left, first)  # type: ignore[misc]
        if found is not None:
            item = CommandItem(found[0], self._db, self._db[found[0]])
            item.updated()
            item.writeback()
        return found

    def sintercard(self, count: bytes, *words: bytes) -> int:
        """fakeredis takes an absent key for one of a wrong type."""
        number = Int.decode(count, "ERR numkeys should be greater than 0")
        if number < 1:
            raise SimpleError("ERR numkeys should be greater than 0")
        if number > len(words):
            raise SimpleError("ERR Number of keys can't be greater than number of args")
        limit, rest = 0, words[number:]
        if rest:
            if len(rest) != 2 or rest[0].upper() != b"LIMIT":
                raise SimpleError("ERR syntax error")
            limit = Int.decode(rest[1], "ERR LIMIT can't be negative")
            if limit < 0:
                raise SimpleError("ERR LIMIT can't be negative")
        members = [self._set_at(key) for key in words[:number]]
        common = len(set.intersection(*members))
        return min(limit, common) if limit else common

    def eval_ro(self, script: bytes, count: bytes, *words: bytes) -> Any:
        return self._read_only(self.eval, script, count, words)  # type: ignore[attr-defined]

    def evalsha_ro(self, digest: bytes, count: bytes, *words: bytes) -> Any:
        return self._read_only(self.evalsha, digest, count, words)  # type: ignore[attr-defined]

    def _get_server_runtime(self, server: Any) -> Any:
        """fakeredis lacks `redis.sha1hex`, and collects Lua's garbage after every script."""
        # Kept by the server, and nowhere else: it knows the server, too.
        lua = getattr(server, "lua", None)
        if lua is None:
            runtime = super()._get_server_runtime(server)  # type: ignore[misc]
            runtime.eval("function(sha1hex) redis.sha1hex = sha1hex end")(_sha1hex)
            lua = server.lua = _Lua(runtime)
        return lua

    def _read_only(self, run: Any, script: bytes, count: bytes, words: Sequence[bytes]) -> Any:
        self._script_reads_only = True
        try:
            return run(script, Int.decode(count), *words)
        finally:
            self._script_reads_only = False

    def _move(self, source: bytes, target: bytes, take_left: bool, give_left: bool, *, first: bool) -> Any:
        item = self._db.get(source)
        if item is None or not isinstance(item.value, list) or not item.value:
            if item is not None and not isinstance(item.value, list) and first:
                raise SimpleError(messages.WRONGTYPE_MSG)
            return None
        there = self._db.get(target)
        if there is not None and not isinstance(there.value, list):
            raise SimpleError(messages.WRONGTYPE_MSG)
        here = CommandItem(source, self._db, item)
        value = here.value.pop(0 if take_left else -1)
        goal = here if source == target else CommandItem(target, self._db, there, default=[])
        goal.value.insert(0 if give_left else len(goal.value), value)
        for each in (here, goal):
            each.updated()
            each.writeback()
        return value

    def _set_at(self, key: bytes) -> set[bytes]:
        item = self._db.get(key)
        if item is None:
            return set()
        if item.value.__class__.__name__ != "ExpiringMembersSet":
            raise SimpleError(messages.WRONGTYPE_MSG)
        return set(item.value)

    _script_reads_only = False
    _script_has_written = False

    def _keyspace_notifications(self, command_items: Any, event: bytes) -> None:
        """Off, as by default."""

    def _subkey_notifications(self, command_items: Any) -> None:
        """Off, as by default."""


def _sha1hex(text: bytes) -> bytes:
    return hashlib.sha1(text).hexdigest().encode()  # noqa: S324  # what the command is


def _is_left(word: bytes) -> bool:
    if word.upper() not in (b"LEFT", b"RIGHT"):
        raise SimpleError("ERR syntax error")
    return word.upper() == b"LEFT"


def _seconds(word: bytes) -> float:
    """The limit of a blocking command."""
    try:
        value = float(word)
    except ValueError:
        raise SimpleError("ERR timeout is not a float or out of range") from None
    if value < 0:
        raise SimpleError("ERR timeout is negative")
    return value


def _add_floats(before: bytes, word: bytes, complaint: str) -> bytes:
    if _INFINITE.fullmatch(word):
        raise SimpleError("ERR value is NaN or Infinity" if b"a" not in word.lower() else complaint)
    if not _NUMBER.fullmatch(word):
        raise SimpleError("ERR value is not a valid float")
    if not _NUMBER.fullmatch(before):
        raise SimpleError(complaint)
    total = _rounded(_rounded(Fraction(before.decode())) + _rounded(Fraction(word.decode())))
    digits = round(abs(total) * 10**17)
    whole, part = divmod(digits, 10**17)
    text = f"{whole}.{part:017d}".rstrip("0").rstrip(".")
    return f"-{text}".encode() if total < 0 and digits else text.encode()


def _rounded(value: Fraction) -> Fraction:
    """To 64 bits of mantissa: a long double of x86."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    scale = Fraction(2) ** (64 - exponent)
    scaled = abs(value) * scale
    while scaled >= 2**64:
        scale, scaled = scale / 2, scaled / 2
    result = Fraction(round(scaled)) / scale
    return -result if value < 0 else result


FIXED_COMMANDS: Final[dict[str, Signature]] = {
    "touch": signature("touch", "touch", keys=1, more_keys=True),
    "copy": signature("copy", "copy", keys=2),
    "incrbyfloat": signature("incrbyfloat", "incrbyfloat", keys=1),
    **{
        name: signature(name, name)
        for name in ("lmove", "rpoplpush", "blmove", "brpoplpush", "sintercard", "eval_ro", "evalsha_ro")
    },
}
"""How fakeredis is to call them."""
