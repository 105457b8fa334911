"""The end of a run: waiting until nothing is under way, and reading what is in the servers then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
import redis
import redis.exceptions
from attrs import define
from system_book import Effect, Letter, Sent
from system_shop import BOOKING, LEDGER, SHIPPING, orders, payments
from system_site import Database, RedisSide

__all__ = ["End"]

_PLACES = [(key, group) for key in orders.keys for group in (LEDGER, SHIPPING)] + [
    (key, BOOKING) for key in payments.keys
]
_TELL_EVERY = 10.0
_STORY = {
    "effect": "select consumer_group, id, number, process, attempt, written_at from effect where event_id = %s",
    "inbox": "select consumer_group, stream, entry_id, handled_at from penstock_inbox where event_id = %s",
    "retry": "select consumer_group, stream, entry_id, origin, attempts, due_at, error_message from penstock_retry"
    " where event_id = %s",
    "dead letter": "select consumer_group, stream, entry_id, reason, deliveries, status, error_message, dead_at"
    " from penstock_dead_letter where event_id = %s",
    "outbox": "select id, stream, kind, created_by, created_at from penstock_outbox where event_id = %s",
}


def _view(admin: redis.Redis, key: str, group: str) -> tuple[dict[str, Any] | None, str, list[Any]]:
    """What Redis says of a group, the stream's last id, and the group's consumers."""
    if not admin.exists(key):
        return None, "", []
    views: Any = admin.xinfo_groups(key)
    view = next((each for each in views if each["name"] == group), None)
    stream: Any = admin.xinfo_stream(key)
    consumers: Any = admin.xinfo_consumers(key, group) if view is not None else []
    return view, stream["last-generated-id"], consumers


@define(eq=False)
class End:
    """See the module. Everything here blocks the thread."""

    redis: RedisSide
    database: Database

    def wait_quiet(self, limit: float, gone: Sequence[str], say: Callable[[str], None]) -> tuple[float, dict[str, Any]]:
        """Seconds until nothing was under way, and what still is after `limit` seconds: empty when all is well.

        Nothing is when two looks in a row find nothing: what goes from one place to another is missed by one of them.

        `gone` are the instances of processes that are gone for good: no consumer of theirs may be left. `say` is told
        of what is left, now and then.
        """
        begun, told, was_quiet = time.monotonic(), 0.0, False
        while True:
            rest, took = self.rest(gone), time.monotonic() - begun
            if (was_quiet and not rest) or took > limit:
                return took, rest
            was_quiet = not rest
            if took - told >= _TELL_EVERY:
                told = took
                say(f"under way: {rest}"[:400])
            time.sleep(0.5)

    def rest(self, gone: Sequence[str] = ()) -> dict[str, Any]:
        """What is under way, by its place."""
        try:
            found = {**self._rest_in_postgres(), **self._rest_in_redis(gone)}
        except (psycopg.Error, redis.exceptions.RedisError, LookupError) as error:
            return {"not to be seen": repr(error)}
        return {place: what for place, what in found.items() if what}

    def _rest_in_postgres(self) -> dict[str, Any]:
        outbox = self.database.sql("select stream, kind, count(*) from penstock_outbox group by 1, 2")
        retry = self.database.sql(
            "select consumer_group, stream, origin, count(*), max(attempts), max(error_message),"
            " max(due_at - now())::text from penstock_retry group by 1, 2, 3"
        )
        return {"outbox": outbox, "retry": retry}

    def _rest_in_redis(self, gone: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, group in _PLACES:
            with self.redis.admin(self.redis.owner(key)) as admin:
                view, last, consumers = _view(admin, key, group)
            if view is None or view["pending"] or view["lag"] or view["last-delivered-id"] != last:
                found[f"{group}@{key}"] = (
                    "no such group" if view is None else f"pending {view['pending']}, lag {view['lag']}"
                )
            left = [str(each["name"]) for each in consumers if str(each["name"]).endswith(tuple(gone) or "\0")]
            found[f"consumers of processes that are gone, {group}@{key}"] = left
        return found

    def behind(self) -> int:
        """Entries that the slowest group of the sent stream has not been given yet; 0 while nobody can tell."""
        behind = {LEDGER: 0, SHIPPING: 0}
        try:
            for key in orders.keys:
                with self.redis.admin(self.redis.owner(key)) as admin:
                    views: Any = admin.xinfo_groups(key) if admin.exists(key) else []
                for view in views:
                    behind[view["name"]] += int(view["lag"] or 0)
        except (redis.exceptions.RedisError, LookupError):
            return 0
        return max(behind.values())

    # What there is --------------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        rows = self.database.sql("select id, consumer_group, event_id, event_key, number, origin from effect")
        return [
            Effect(row, group, str(event_id), key, number, None if origin is None else str(origin))
            for row, group, event_id, key, number, origin in rows
        ]

    def letters(self) -> list[Letter]:
        rows = self.database.sql(
            "select consumer_group, event_id, stream, entry_id, reason, status from penstock_dead_letter"
        )
        return [
            Letter(group, None if event_id is None else str(event_id), stream, entry_id, reason, status)
            for group, event_id, stream, entry_id, reason, status in rows
        ]

    def mirrored(self) -> int:
        """Entries that show dead letters."""
        total = 0
        for stream in (orders, payments):
            with self.redis.admin(self.redis.owner(stream.mirror_key)) as admin:
                total += int(admin.xlen(stream.mirror_key))
        return total

    def stories(self, ids: Iterable[str], sent: dict[str, Sent]) -> list[str]:
        """All that is known of some events."""
        entries = self._entries()
        return [line for event_id in ids for line in self._story(event_id, sent.get(event_id), entries)]

    def _story(self, event_id: str, sent: Sent | None, entries: dict[str, list[str]]) -> list[str]:
        lines = [f"  {event_id}"]
        if " " in event_id:  # the place of an entry that was no event
            return lines
        if sent is not None:
            lines.append(f"    sent: key {sent.key}, number {sent.number}, plan {sent.plan}, unknown {sent.unknown}")
            lines += [f"    accepted: {each}" for each in sent.accepted]
            lines += [f"    client: {each}" for each in sent.diary[-5:]]
        lines += [f"    entry: {each}" for each in entries.get(event_id, ["none"])]
        for name, statement in _STORY.items():
            lines += [f"    {name}: {' | '.join(map(str, row))}" for row in self.database.sql(statement, event_id)]
        return lines

    def _entries(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in (*orders.keys, *payments.keys):
            with self.redis.admin(self.redis.owner(key)) as admin:
                for entry_id, fields in admin.xrange(key):
                    found.setdefault(fields.get("eventId", ""), []).append(f"{key} {entry_id}")
        return found
