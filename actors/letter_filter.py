"""Which dead letters somebody means: as conditions of SQL, and as the record of an order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, LiteralString
from uuid import UUID

from attrs import asdict, field, frozen
from psycopg import sql

from .letter_terms import STATUSES

if TYPE_CHECKING:
    from .system import System

__all__ = ["LetterFilter"]

_INT8: Final = 2**63


def _known(instance: object, attribute: Any, value: str | None) -> None:
    if value is not None and value not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {value!r}")


@frozen(kw_only=True)
class LetterFilter:
    """Which letters; what is None does not matter.

    Attributes:
        ids: these letters.
        stream: the key of a declared stream, or of one of its partitions.
        group: the consumer group.
        reason: see `Reason`.
        event_type: the event's type.
        fingerprint: how it died.
        status: ``dead`` (the default), ``replaying``, ``replayed`` or ``discarded``.
        key: the event's key.
        event_id: the event.
        since: dead since then; aware.
        until: dead before then; aware.
    """

    ids: tuple[int, ...] | None = None
    stream: str | None = None
    group: str | None = None
    reason: str | None = None
    event_type: str | None = None
    fingerprint: str | None = None
    status: str | None = field(default="dead", validator=_known)
    key: str | None = None
    event_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self, system: System) -> tuple[sql.Composed, dict[str, Any]]:
        """What of it stands behind ``where``, and its values."""
        found: list[LiteralString] = ["true"]
        values: dict[str, Any] = {}
        for name, condition in _CONDITIONS.items():
            value = getattr(self, name)
            if value is not None:
                found.append(condition)
                values[name] = value
        if self.ids is not None:
            values["ids"] = [number for number in self.ids if 0 < number < _INT8]
        if self.stream is not None:
            declared = system.streams.get(self.stream)
            values["stream"] = list(declared.keys) if declared is not None else [self.stream]
        return sql.SQL(" and ").join(map(sql.SQL, found)), values

    def told(self) -> dict[str, Any]:
        """It as JSON values, for the record of an order."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if isinstance(value, str | tuple) else str(value) for name, value in given.items()}


_CONDITIONS: Final[Mapping[str, LiteralString]] = {
    "ids": "letter.id = any(%(ids)s)",
    "stream": "letter.stream = any(%(stream)s)",
    "group": "letter.consumer_group = %(group)s",
    "reason": "letter.reason = %(reason)s",
    "event_type": "letter.event_type = %(event_type)s",
    "fingerprint": "letter.fingerprint = %(fingerprint)s",
    "status": "letter.status = %(status)s",
    "key": "letter.event_key = %(key)s",
    "event_id": "letter.event_id = %(event_id)s",
    "since": "letter.dead_at >= %(since)s",
    "until": "letter.dead_at < %(until)s",
}
