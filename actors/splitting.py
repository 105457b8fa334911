"""What is tried next when events that share a transaction cannot be committed together.

Where it is known who failed (its handler raised, or a batch handler said so), the others are tried together again, and
what becomes of the failed ones is written in their transaction. Where it is not known, the events are halved. So one
of a hundred that fails costs one transaction more, or some fifteen, and not a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from attrs import define, field

from .handling import Entry

__all__ = ["Part", "Splitting"]

REPEATS = 3
"""How often a part is tried again as a whole: so often, and once more, a handler is called for one event in vain."""

PATIENCE = 1.0
"""Seconds for which what is known to have failed may wait to be written, beside others that fail as well."""


@define(eq=False)
class Part:
    """Entries that are tried together, in order.

    Attributes:
        entries: all of them.
        failed: what those failed of that have failed: no handler is called for them.
        times: how often this part, as it is, was tried again.
        since: when it was tried first (`trio.current_time()`).
    """

    entries: Sequence[Entry]
    failed: dict[str, BaseException] = field(factory=dict)
    times: int = 0
    since: float = field(factory=trio.current_time)

    def cut(self, *places: int) -> list[Part]:
        """The parts between `places`, in order."""
        ends = [*places, len(self.entries)]
        pieces = [self.entries[start:end] for start, end in zip([0, *places], ends, strict=True)]
        return [Part(piece, _of(piece, self.failed)) for piece in pieces if piece]


class Splitting:
    """How one batch is split.

    Args:
        entries: the batch, in order.
        failed: what those failed of that are not to be tried at all.

    Attributes:
        parts: what is to be tried, in order.
    """

    def __init__(self, entries: Sequence[Entry], failed: Mapping[str, BaseException] | None = None) -> None:
        self.parts = [Part(entries, dict(failed or {}))]
        # As many as find three events by halving. Where more fail, halving costs more than it saves.
        self._halvings = 3 * len(entries).bit_length()

    def again(self, part: Part, error: BaseException, known: Mapping[str, BaseException]) -> bool:
        """Put what is to be tried instead of `part`, which failed of `error`, in front of the others.

        False, and nothing is put there, if it is one entry whose failure could not be written.

        Args:
            part: taken from the front of `parts`.
            error: what it failed of.
            known: what entries failed of, as far as that is known.
        """
        fresh = {entry.id: known[entry.id] for entry in part.entries if entry.id in known.keys() - part.failed.keys()}
        if len(part.entries) == 1:
            if part.failed:
                return False
            fresh = {part.entries[0].id: error}
        self.parts[:0] = self._without(part, fresh) if fresh else self._divided(part)
        return True

    def _without(self, part: Part, fresh: Mapping[str, BaseException]) -> list[Part]:
        """The same again without handling `fresh`; or first what is up to there, so that it is over."""
        part.failed.update(fresh)
        part.times += 1
        behind = 1 + max(number for number, entry in enumerate(part.entries) if entry.id in part.failed)
        others = behind - len(part.failed)
        if (others and part.times > REPEATS) or trio.current_time() > part.since + PATIENCE:
            return part.cut(behind)
        return [part]

    def _divided(self, part: Part) -> list[Part]:
        self._halvings -= 1
        if self._halvings >= 0:
            return part.cut(len(part.entries) // 2)
        return part.cut(*range(1, len(part.entries)))


def _of(entries: Sequence[Entry], failed: Mapping[str, BaseException]) -> dict[str, BaseException]:
    return {entry.id: failed[entry.id] for entry in entries if entry.id in failed}
