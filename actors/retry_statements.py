"""The statements of `retry_table.PostgresRetries`."""

from __future__ import annotations

from typing import Final

LOOKED_AT: Final = 100
"""Rows beyond the limit that are looked at in the order in which they became due, before it goes from key to key."""

_COLUMNS: Final = """
    id, consumer_group, stream, entry_id, fields, origin, event_id, event_type, event_key, forced, letter_id, attempts,
    extract(epoch from due_at - now())::float8, error_class, error_message, traceback, fingerprint, first_failed_at
"""

ADD: Final = """
insert into penstock_retry (
    consumer_group, stream, entry_id, fields, origin, event_id, event_type, event_key, forced, letter_id, attempts,
    due_at, error_class, error_message, traceback, fingerprint, first_failed_at
)
select g, s, e, f, o, i, t, k, b, l, a, now() + make_interval(secs => d), c, m, r, p, case when a > 0 then now() end
from unnest(
    %s::text[], %s::text[], %s::text[], %b::bytea[], %s::text[], %b::uuid[], %s::text[], %s::text[], %s::boolean[],
    %s::bigint[], %s::integer[], %s::float8[], %s::text[], %s::text[], %s::text[], %s::text[]
) with ordinality as given (g, s, e, f, o, i, t, k, b, l, a, d, c, m, r, p, place)
order by place
on conflict (consumer_group, stream, entry_id) do nothing
"""

TAKE: Final = f"""
select {_COLUMNS} from penstock_retry
where consumer_group = %(group)s and stream = %(stream)s and due_at <= now()
order by due_at, id limit %(limit)s for update skip locked
"""  # noqa: S608 - our own names

TAKE_ORDERED: Final = f"""
with recursive first as materialized (
    select id, event_key from penstock_retry
    where consumer_group = %(group)s and stream = %(stream)s and due_at <= now()
    order by due_at limit %(limit)s + {LOOKED_AT}
), here as materialized (
    select id from first where event_key is null or event_key <> all(%(without)s::text[]) and not exists (
        select from penstock_retry earlier
        where earlier.consumer_group = %(group)s and earlier.stream = %(stream)s
            and earlier.event_key = first.event_key and earlier.id < first.id
    )
), head as (
    (
        select id, event_key, due_at from penstock_retry
        where consumer_group = %(group)s and stream = %(stream)s and event_key is not null
            and not exists (select from here) and (select count(*) from first) = %(limit)s + {LOOKED_AT}
        order by event_key, id limit 1
    )
    union all
    select following.* from head cross join lateral (
        select id, event_key, due_at from penstock_retry
        where consumer_group = %(group)s and stream = %(stream)s and event_key > head.event_key
        order by event_key, id limit 1
    ) following
), keyless as (
    select id from penstock_retry
    where consumer_group = %(group)s and stream = %(stream)s and event_key is null and due_at <= now()
        and not exists (select from here)
    order by due_at limit %(limit)s
)
select {_COLUMNS} from penstock_retry
where due_at <= now() and id = any(array(
    select id from here
    union select id from head where due_at <= now() and event_key <> all(%(without)s::text[])
    union select id from keyless
))
order by due_at, id limit %(limit)s for update skip locked
"""  # noqa: S608 - our own names
# What is due longest, if it may be taken. Where all of that waits behind its keys: of each key its first row, found by
# going from key to key, for a hundred thousand rows behind one key must not be looked at one by one.

HOLD: Final = f"""
select {_COLUMNS} from penstock_retry
where (id, attempts) in (select * from unnest(%s::bigint[], %s::integer[]))
order by id for update skip locked
"""  # noqa: S608 - our own names

HOLD_ORDERED: Final = f"""
select {_COLUMNS} from penstock_retry
where (id, attempts) in (select * from unnest(%(ids)s::bigint[], %(attempts)s::integer[])) and not exists (
    select from penstock_retry earlier
    where earlier.consumer_group = penstock_retry.consumer_group and earlier.stream = penstock_retry.stream
    and earlier.event_key = penstock_retry.event_key and earlier.id < penstock_retry.id and earlier.id <> all(%(ids)s)
)
order by id for update skip locked
"""  # noqa: S608 - our own names

FOLLOWING: Final = f"""
select behind.* from unnest(%(keys)s::text[]) as given (key) cross join lateral (
    select {_COLUMNS} from penstock_retry
    where consumer_group = %(group)s and stream = %(stream)s and event_key = given.key and id <> all(%(ids)s)
    order by id limit %(limit)s
) behind
order by behind.id limit %(limit)s
"""  # noqa: S608 - our own names

CLAIM: Final = """
update penstock_retry set due_at = now() + make_interval(secs => %s)
where id in (select id from penstock_retry where id = any(%s) order by id for update skip locked)
"""

NEXT: Final = """
select extract(epoch from min(due_at) - now())::float8 from penstock_retry
where consumer_group = %s and stream = %s and due_at > now()
"""

KEYS: Final = """
select given.key from unnest(%s::text[]) as given (key) cross join lateral (
    select from penstock_retry where consumer_group = %s and stream = %s and event_key = given.key limit 1
) waiting
"""

ENTER: Final = """
insert into penstock_inbox as known (consumer_group, event_id, stream, entry_id) values (%s, %s, %s, %s)
on conflict (consumer_group, event_id) do update
set stream = excluded.stream, entry_id = excluded.entry_id, handled_at = now() where %s
returning true
"""

DIED_ELSEWHERE: Final = """
delete from penstock_inbox known where consumer_group = %(group)s and event_id = %(event_id)s and exists (
    select from penstock_dead_letter letter
    where letter.event_id = known.event_id and letter.consumer_group = known.consumer_group
        and letter.status <> 'replayed'
)
"""

REPLAYED: Final = """
select event_id from penstock_inbox
where consumer_group = %(group)s and event_id = any(%(events)s::uuid[]) and handled_at > %(since)s
union
select event_id from penstock_retry
where consumer_group = %(group)s and event_id = any(%(events)s::uuid[]) and forced
"""

REMAINING: Final = """
select given.entry_id from unnest(%(ids)s::text[]) as given (entry_id)
where not exists (
    select from penstock_retry row
    where row.consumer_group = %(group)s and row.stream = %(stream)s and row.entry_id = given.entry_id
) and not exists (
    select from penstock_dead_letter letter
    where letter.consumer_group = %(group)s and letter.stream = %(stream)s and letter.entry_id = given.entry_id
)
"""

PUT_OFF: Final = """
update penstock_retry set attempts = %s, due_at = now() + make_interval(secs => %s), error_class = %s,
    error_message = %s, traceback = %s, fingerprint = %s, first_failed_at = coalesce(first_failed_at, now()),
    updated_at = now()
where id = %s and attempts = %s
"""
