"""How many entries a listener asks for at a time: by what they weighed before, for Redis counts entries, not bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .handling import Entry

__all__ = ["COUNT", "READ_BYTES", "ReadSize"]

COUNT: Final = 100
"""Entries a read at the most: the knee of the measured curve."""

READ_BYTES: Final = 4 * 1024 * 1024
"""Bytes that a read brings at the most, as far as entries weigh what those before did, and a single one no more: the
server does nothing else while it puts the reply together, nor our event loop while it takes it apart."""


FIRST: Final = 10
"""Entries that are asked for as long as nothing is known of them."""


class ReadSize:
    """The size of the next read of one stream. It doubles as long as entries are small.

    What it cannot see coming: the first large entries behind many small ones.
    """

    def __init__(self) -> None:
        self._weight = READ_BYTES / FIRST

    def count(self, room: int) -> int:
        """Entries to ask for, with room for so many: from 1 to `COUNT`."""
        return max(1, min(COUNT, room, int(READ_BYTES / self._weight)))

    def took(self, entries: Iterable[Entry]) -> None:
        """Learn from what a read has brought; nothing is learned from nothing."""
        weights = [_weight(entry) for entry in entries]
        if weights:
            self._weight = max(sum(weights) / len(weights), self._weight / 2, READ_BYTES / COUNT)

    def failed(self) -> None:
        """A read had no end, or was cut off. It may have been too much for somebody: ask for half of it."""
        self._weight = min(READ_BYTES, self._weight * 2)


def _weight(entry: Entry) -> int:
    return sum(len(name) + len(value) for name, value in (entry.fields or {}).items())
