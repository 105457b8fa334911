"""The settings of single streams and their groups: ``[streams."order-events"]`` and, below it, ``.groups.NAME``.

What is not set stays as it is declared in code. What nothing declares is declared by them; see `configured`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import field, frozen

from ..runtime.settings import above_zero, at_least
from .declarations import MOST_PARTITIONS

__all__ = ["GroupSettings", "StreamSettings"]

_START: Final = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_LARGEST: Final = 2**64 - 1
"""Of both parts of an entry's id."""

_LARGEST_COUNT: Final = 2**63 - 1
"""That Redis takes."""


def _entry_id(instance: object, attribute: Any, value: str | None) -> None:
    if value is None or value == "$":
        return
    if not _START.fullmatch(value) or any(int(part) > _LARGEST for part in value.split("-")):
        raise ValueError('must be "0", "$" or the id of an entry, such as "1700000000000-0"')


def _all_named(instance: object, attribute: Any, value: list[str] | dict[str, str]) -> None:
    if "" in value:
        raise ValueError("must not hold an event type without a name")


@frozen(kw_only=True)
class GroupSettings:
    """A consumer group of a stream.

    Attributes:
        enabled: whether this process reads it; `false`: other processes do, or will, and its events wait for them. Of
            a group that nothing here handles: whether it is made at all. Not set: as declared (`true`).
        consumers: how many listeners read for it in this process; not set: as declared, which is 1 by default.
        batch: events that share a transaction at the most; not set: as declared (100).
        block: seconds that a read waits for news, which costs no latency; not set: as declared (1.0).
        workers: transactions that are open at a time; not set: as declared (4).
        ordered: whether events of one key are handled one after the other; not set: as declared (`false`).
        start: the id at which the group starts when it is made first, `"$"` for what comes from then on; not set: as
            declared (`"0"`, the beginning of the stream).
        max_deliveries: as in `[delivery]`, for this group; a handler that has a policy of its own keeps it.
        retry_minimum: as in `[delivery]`, for this group.
        retry_maximum: as in `[delivery]`, for this group.
        handlers: by event type the function that handles it in this group, `async (event, context)`, as
            `"module:function"` or `"file.py:function"`; in the place of a declared one.
    """

    enabled: bool | None = None
    consumers: int | None = field(default=None, validator=at_least(1))
    batch: int | None = field(default=None, validator=at_least(1, _LARGEST_COUNT))
    block: float | None = field(default=None, validator=above_zero)
    workers: int | None = field(default=None, validator=at_least(1))
    ordered: bool | None = None
    start: str | None = field(default=None, validator=_entry_id)
    max_deliveries: int | None = field(default=None, validator=at_least(1))
    retry_minimum: float | None = field(default=None, validator=above_zero)
    retry_maximum: float | None = field(default=None, validator=above_zero)
    handlers: dict[str, str] = field(factory=dict, validator=_all_named)


@frozen(kw_only=True)
class StreamSettings:
    """A stream.

    Attributes:
        max_len: entries of each partition that are kept at the most, about; older ones are cut off, *unread or not*;
            not set: as declared, which is none by default, and retention deletes only what every group is done with.
        partitions: over how many streams of Redis it is spread, by the event's key; fixed when it is first used; not
            set: as declared (1).
        events: event types that it carries beside those that are declared or handled, by name; their data are not
            looked at.
        groups: its consumer groups, by name.
    """

    max_len: int | None = field(default=None, validator=at_least(1, _LARGEST_COUNT))
    partitions: int | None = field(default=None, validator=at_least(1, MOST_PARTITIONS))
    events: list[str] = field(factory=list, validator=_all_named)
    groups: dict[str, GroupSettings] = field(factory=dict)
