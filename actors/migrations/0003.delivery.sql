-- What delivery remembers beside the inbox: events on their way to Redis, events that wait for another attempt, who is
-- there and who has which partition, what was lost, what is replayed.

-- How many partitions a stream was made with: a key must go on meeting the same partition.
create table penstock_stream (
    stream     text        not null primary key,
    partitions integer     not null check (partitions >= 1),
    created_at timestamptz not null default now()
);

-- Events that are accepted and not yet in Redis: spooled while Redis refused or was away, or published inside of
-- somebody's transaction. The relay adds them to their streams in the order of id, and deletes them.
create table penstock_outbox (
    id         bigint      generated always as identity primary key,
    stream     text        not null,
    -- Null only where the mirror of a dead letter shows what is no event.
    event_id   uuid,
    event_key  text,
    -- The entry's fields as a JSON object in ASCII: bytes, for JSON in PostgreSQL holds no NUL.
    fields     bytea       not null,
    kind       text        not null check (kind in ('spool', 'behind', 'transaction', 'mirror', 'replay')),
    -- The approximate length to which the stream is cut; a declared lossy cap, or a mirror's.
    max_len    bigint,
    -- The dead letter that a mirror's entry shows.
    letter_id  bigint,
    created_by text        not null default '',
    created_at timestamptz not null default now()
);

create index penstock_outbox_stream_idx on penstock_outbox (stream, id);
create index penstock_outbox_event_id_idx on penstock_outbox (event_id);

-- Wakes the relays. Told by name is what was spooled, for from then on everybody's events go behind it; not what only went
-- behind that, or processes would send each other on this detour for ever. (A payload has at most 8000 bytes.)
create function penstock_outbox_news() returns trigger language plpgsql as $$
begin
    perform pg_notify('penstock_outbox', told.stream) from (
        select distinct case when kind = 'spool' and octet_length(stream) < 8000 then stream else '' end as stream
        from added
    ) as told;
    return null;
end
$$;

create trigger penstock_outbox_news after insert on penstock_outbox
    referencing new table as added for each statement execute function penstock_outbox_news();

-- Publishes an event within whatever transaction it is called in; its id. The entry has the standard form; `stream` is the
-- key of a declared stream.
create function penstock_publish(
    stream      text,
    event_type  text,
    data        jsonb,
    key         text        default null,
    event_id    uuid        default null,
    "timestamp" timestamptz default clock_timestamp(),
    traceparent text        default null
) returns uuid language plpgsql as $$
declare
    random bytea := uuid_send(gen_random_uuid());
    made   uuid  := event_id;
begin
    if jsonb_typeof(data) is distinct from 'object' or coalesce(stream, '') = '' or coalesce(event_type, '') = '' then
        raise exception 'penstock_publish needs a stream, an event type, and data that are a JSON object'
            using errcode = 'invalid_parameter_value';
    end if;
    if made is null then
        -- UUIDv7 (RFC 9562): 48 bits of Unix time in milliseconds, then random bits.
        random := substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                  || substring(random from 7);
        made := encode(set_byte(random, 6, (get_byte(random, 6) & 15) | 112), 'hex')::uuid;
    end if;
    insert into penstock_outbox (stream, event_id, event_key, fields, kind, created_by) values (
        stream, made, key,
        convert_to(json_strip_nulls(json_build_object(
            'eventId', made, 'eventType', event_type,
            'timestamp', to_char("timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
            'data', data::text, 'key', key, 'traceparent', traceparent
        ))::text, 'UTF8'),
        'transaction', 'penstock_publish'
    );
    return made;
end
$$;

-- Events whose attempt failed, and in ordered groups what stands behind them under the same key. Their entries are
-- acknowledged: this row is what is left of them. Rows of one key are handled in the order of id.
create table penstock_retry (
    id              bigint      generated always as identity primary key,
    consumer_group  text        not null,
    stream          text        not null,
    entry_id        text        not null,
    event_id        uuid,
    event_type      text,
    event_key       text,
    fields          bytea       not null,
    -- attempt: it failed; parked: it waits behind its key; letter, replay: somebody ordered it.
    origin          text        not null check (origin in ('attempt', 'parked', 'letter', 'replay')),
    -- Handle it although the inbox knows the event.
    forced          boolean     not null default false,
    letter_id       bigint,
    attempts        integer     not null default 0,
    due_at          timestamptz not null default now(),
    first_failed_at timestamptz,
    error_class     text,
    error_message   text,
    traceback       text,
    fingerprint     text,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint penstock_retry_entry_key unique (consumer_group, stream, entry_id)
);

create index penstock_retry_due_at_idx on penstock_retry (consumer_group, stream, due_at);
create index penstock_retry_key_idx on penstock_retry (consumer_group, stream, event_key, id) where event_key is not null;
create index penstock_retry_keyless_idx on penstock_retry (consumer_group, stream, due_at) where event_key is null;
create index penstock_retry_event_id_idx on penstock_retry (event_id);

-- Enters events into a group's inbox; returns those that have come to no end there yet, and wait for none. An event that
-- is dead, or waits in the table of retries, comes again when the acknowledgement of its entry was lost, and, as another
-- entry, when it was published twice. A letter that was published again ends its entry alone.
-- Two statements: who has waited for another transaction in the first one sees in the second what that one has written.
create function penstock_enter(
    for_group text, event_ids uuid[], streams text[], entry_ids text[], abandoned_after text
) returns setof uuid language plpgsql as $$
declare
    entered uuid[];
    fresh   uuid[];
begin
    -- A process that is frozen from here on would keep others from handling these events.
    perform set_config('idle_in_transaction_session_timeout', abandoned_after, true);
    with added as (
        insert into penstock_inbox (consumer_group, event_id, stream, entry_id)
        select for_group, given.* from unnest(event_ids, streams, entry_ids) as given
        on conflict do nothing returning event_id
    )
    select array_agg(added.event_id) into entered from added;
    if entered is null then
        return;
    end if;
    if not exists (select from penstock_dead_letter letter where letter.consumer_group = for_group)
        and not exists (select from penstock_retry waiting where waiting.consumer_group = for_group) then
        return query select unnest(entered);
        return;
    end if;
    select array_agg(distinct given.event_id) into fresh
    from unnest(event_ids, streams, entry_ids) as given (event_id, stream, entry_id)
    where given.event_id = any(entered) and not exists (
        select from penstock_dead_letter letter
        where letter.consumer_group = for_group and letter.stream = given.stream and letter.entry_id = given.entry_id
    ) and not exists (
        select from penstock_retry waiting where waiting.consumer_group = for_group
            and waiting.stream = given.stream and waiting.entry_id = given.entry_id
    ) and not exists (
        select from penstock_dead_letter letter
        where letter.event_id = given.event_id and letter.consumer_group = for_group and letter.status <> 'replayed'
    ) and not exists (
        select from penstock_retry waiting
        where waiting.event_id = given.event_id and waiting.consumer_group = for_group
    );
    if fresh is distinct from entered then
        delete from penstock_inbox
        where consumer_group = for_group and event_id = any(entered) and event_id <> all(coalesce(fresh, '{}'));
    end if;
    return query select unnest(fresh);
end
$$;

-- Entries that may be the death of whoever handles them: how often one was taken up, alone, and that attempt has not
-- come to an orderly end. Written before such an entry is handled, in a transaction of its own.
create table penstock_suspect (
    consumer_group text        not null,
    stream         text        not null,
    entry_id       text        not null,
    times          integer     not null,
    updated_at     timestamptz not null default now(),
    primary key (consumer_group, stream, entry_id)
);

-- Who is there: one row for each process, renewed every few seconds.
create table penstock_member (
    process    uuid        not null primary key,
    system     text        not null,
    instance   text        not null,
    host       text        not null,
    pid        integer     not null,
    version    text        not null,
    -- The ordered groups (GROUP@STREAM) of which it could handle partitions right now.
    groups     text[]      not null default '{}',
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now()
);

-- Who has a partition of an ordered group. The epoch grows with every new owner, and is checked in each handler's
-- transaction: whoever has lost the lease can commit nothing.
create table penstock_lease (
    consumer_group text        not null,
    stream         text        not null,
    owner          uuid,
    epoch          bigint      not null default 0,
    expires_at     timestamptz not null,
    primary key (consumer_group, stream)
);

-- What became of dead letters.
alter table penstock_dead_letter
    add column traceparent     text,
    add column host            text,
    add column pid             integer,
    add column version         text,
    -- The stream that shows it, and the entry there; the entry is null until it is added, and once it is removed.
    add column mirror          text,
    add column mirror_id       text,
    add column replays         integer not null default 0,
    -- The order that works on it, or did last, and when it moved the letter to where it is tried again.
    add column order_id        uuid,
    add column moved_at        timestamptz,
    add column settled_at      timestamptz,
    add column settled_by      text,
    add column note            text,
    add constraint penstock_dead_letter_status check (status in ('dead', 'replaying', 'replayed', 'discarded'));

create index penstock_dead_letter_status_idx on penstock_dead_letter (status, dead_at);
create index penstock_dead_letter_order_idx on penstock_dead_letter (order_id, id) where order_id is not null;
create index penstock_dead_letter_settled_at_idx on penstock_dead_letter (settled_at) where settled_at is not null;
create index penstock_dead_letter_mirror_idx on penstock_dead_letter (id)
    where mirror_id is not null and status in ('replayed', 'discarded');

-- Who did what to a dead letter. Without a foreign key: retention deletes letters and their history each in its time.
create table penstock_dead_letter_audit (
    id        bigint      generated always as identity primary key,
    letter_id bigint      not null,
    action    text        not null check (action in ('ordered', 'moved', 'cancelled', 'replayed', 'died', 'discarded',
                                                     'noted')),
    at        timestamptz not null default now(),
    by        text        not null,
    order_id  uuid,
    note      text
);

create index penstock_dead_letter_audit_letter_idx on penstock_dead_letter_audit (letter_id, id);
create index penstock_dead_letter_audit_at_idx on penstock_dead_letter_audit (at);

-- Replays of dead letters, as somebody ordered them. One process works on an order at a time, at its rate.
create table penstock_dead_letter_order (
    id          uuid             not null primary key,
    system      text             not null,
    target      text             not null check (target in ('group', 'stream')),
    -- Letters a second.
    rate        double precision not null check (rate > 0),
    state       text             not null default 'running' check (state in ('running', 'done', 'cancelled')),
    total       integer          not null,
    moved       integer          not null default 0,
    filter      jsonb            not null,
    note        text,
    ordered_by  text             not null,
    ordered_at  timestamptz      not null default now(),
    worker      text,
    worked_at   timestamptz,
    finished_at timestamptz
);

create index penstock_dead_letter_order_state_idx on penstock_dead_letter_order (system, state);
create index penstock_dead_letter_order_finished_at_idx on penstock_dead_letter_order (finished_at);

-- The groups that are declared, and what they have handlers for, as the process that started last said: what the
-- ledger needs to know who is to get an event.
create table penstock_group (
    stream         text        not null,
    consumer_group text        not null,
    system         text        not null,
    -- The keys of the stream's partitions in Redis.
    partitions     text[]      not null,
    event_types    text[]      not null,
    declared_at    timestamptz not null default now(),
    primary key (stream, consumer_group)
);

-- Entries that somebody else trimmed or deleted before a group was given them.
create table penstock_loss (
    id             bigint      generated always as identity primary key,
    consumer_group text        not null,
    stream         text        not null,
    -- The last entry that the group was given, and the first that is there.
    after_id       text        not null,
    before_id      text        not null,
    -- How many were lost; null where Redis cannot tell.
    entries        bigint,
    -- What Redis had counted as given to the group when it was found, -1 where it does not count: tells a loss that has
    -- grown from another one at the same place.
    counted_from   bigint      not null default -1,
    detected_at    timestamptz not null default now(),
    constraint penstock_loss_place_key unique (consumer_group, stream, after_id, counted_from)
);

-- Replays of a range of a stream, as somebody ordered them.
create table penstock_replay (
    id             uuid        not null primary key,
    system         text        not null,
    stream         text        not null,
    from_id        text        not null,
    to_id          text        not null,
    -- Either into a stream, or to one group alone.
    target_stream  text,
    consumer_group text,
    -- Events a second; null: as fast as it goes. original: at the pace at which they were published.
    rate           double precision,
    original_pace  boolean     not null default false,
    state          text        not null default 'waiting'
                   check (state in ('waiting', 'running', 'done', 'cancelled', 'failed')),
    -- The last entry that was replayed, by partition: written together with what came of the entries.
    cursors        jsonb       not null default '{}',
    total          bigint,
    replayed       bigint      not null default 0,
    ordered_by     text        not null,
    ordered_at     timestamptz not null default now(),
    finished_at    timestamptz,
    error          text,
    -- The process that works it off, and until when it need not be thought dead.
    worker         uuid,
    worker_until   timestamptz,
    constraint penstock_replay_target check ((target_stream is null) <> (consumer_group is null))
);

create index penstock_replay_open_idx on penstock_replay (system, ordered_at) where state in ('waiting', 'running');

-- The ledger -----------------------------------------------------------------------------------------------------------

-- Whether a stream entry's id stands before another one.
create function penstock_entry_before(one text, other text) returns boolean language sql immutable parallel safe as $$
    select string_to_array(one, '-')::numeric[] < string_to_array(other, '-')::numeric[]
$$;

-- What came of events, for each group that is declared to read their streams, as far as PostgreSQL knows: of an event that
-- has only been added to its stream, and was not handled by any group, there is no trace here, and no row.
create function penstock_fate(variadic wanted uuid[]) returns table (
    event_id       uuid,
    stream         text,
    consumer_group text,
    fate           text,
    reason         text,
    partition      text,
    entry_id       text,
    since          timestamptz
) language sql stable as $$
    with asked as (
        select distinct unnest(wanted) as event_id
    ), inbox as (
        select found.* from penstock_inbox found
        where found.event_id = any(wanted) and found.consumer_group in (select known.consumer_group from penstock_group known)
    ), retry as (
        select * from penstock_retry found where found.event_id = any(wanted)
    ), letter as (
        -- Of several (it was published again, and died again) the one that is not settled, or the last.
        select distinct on (found.event_id, found.consumer_group, found.stream) found.*
        from penstock_dead_letter found where found.event_id = any(wanted)
        order by found.event_id, found.consumer_group, found.stream, (found.settled_at is null) desc, found.id desc
    ), outbox as (
        select found.event_id, found.stream, min(found.created_at) as created_at
        from penstock_outbox found where found.event_id = any(wanted) and found.kind <> 'mirror' group by 1, 2
    ), trace as (
        select inbox.event_id, inbox.stream, inbox.entry_id from inbox
        union select retry.event_id, retry.stream, retry.entry_id from retry
        union select letter.event_id, letter.stream, letter.entry_id from letter
    ), place as (
        -- Where each event stands in each stream: its first entry, or none yet.
        select distinct on (trace.event_id, declared.stream)
            trace.event_id, declared.stream, trace.stream as partition, trace.entry_id
        from trace join (select distinct known.stream, unnest(known.partitions) as key from penstock_group known) declared
            on declared.key = trace.stream
        order by trace.event_id, declared.stream, string_to_array(trace.entry_id, '-')::numeric[]
    ), concerned as (
        select place.* from place
        union all
        select outbox.event_id, outbox.stream, null, null from outbox
        where not exists (
            select from place where place.event_id = outbox.event_id and place.stream = outbox.stream
        )
    ), known as (
        select concerned.event_id, declared.stream, declared.consumer_group, concerned.partition, concerned.entry_id,
            inbox.handled_at, inbox.entry_id as handled_as, inbox.stream as handled_in,
            retry.id as retry_id, retry.origin, retry.attempts, retry.error_message as retry_error, retry.updated_at,
            retry.forced, retry.entry_id as retried_as, retry.stream as retried_in,
            letter.id as letter_id, letter.status, letter.reason as letter_reason, letter.error_message, letter.dead_at,
            letter.settled_at, letter.settled_by, letter.entry_id as died_as, letter.stream as died_in,
            gone.reason as gone_reason, gone.dead_at as gone_at,
            outbox.created_at as spooled_at, position.entry_id as position, position.updated_at as position_at,
            loss.detected_at
        from concerned
        join penstock_group declared on declared.stream = concerned.stream
        left join inbox on inbox.event_id = concerned.event_id and inbox.consumer_group = declared.consumer_group
        left join lateral (
            select * from retry where retry.event_id = concerned.event_id
                and retry.consumer_group = declared.consumer_group and retry.stream = any(declared.partitions)
            order by retry.id limit 1
        ) retry on true
        left join lateral (
            select * from letter where letter.event_id = concerned.event_id
                and letter.consumer_group = declared.consumer_group and letter.stream = any(declared.partitions)
            order by (letter.settled_at is null) desc, letter.id desc limit 1
        ) letter on true
        -- Of an entry that was trimmed while it was pending, the letter could not tell the event.
        left join penstock_dead_letter gone on gone.consumer_group = declared.consumer_group
            and gone.stream = concerned.partition and gone.entry_id = concerned.entry_id and gone.event_id is null
        left join outbox on outbox.event_id = concerned.event_id and outbox.stream = declared.stream
        left join penstock_group_position position
            on position.consumer_group = declared.consumer_group and position.stream = concerned.partition
        left join lateral (
            select max(gap.detected_at) as detected_at from penstock_loss gap
            where gap.consumer_group = declared.consumer_group and gap.stream = concerned.partition
                and penstock_entry_before(gap.after_id, concerned.entry_id)
                and penstock_entry_before(concerned.entry_id, gap.before_id)
        ) loss on true
    )
    select known.event_id, known.stream, known.consumer_group, fate.fate, fate.reason, fate.partition, fate.entry_id, fate.since
    from known cross join lateral (
        select 1 as rank, 'retrying' as fate,
            coalesce(known.retry_error, case known.origin when 'parked' then 'waits behind its key'
                when 'attempt' then 'its attempt failed' else 'replay ordered' end) as reason,
            known.retried_in as partition, known.retried_as as entry_id, known.updated_at as since
        where known.retry_id is not null and (known.forced or known.handled_at is null)
        union all
        select 2, 'done', 'handled', known.handled_in, known.handled_as, known.handled_at where known.handled_at is not null
        union all
        select 3, case known.letter_reason when 'expired' then 'expired' when 'trimmed' then 'lost' else 'dead' end,
            known.letter_reason || case known.status when 'discarded' then ', discarded by ' || known.settled_by
                when 'replaying' then ', its replay is ordered' else '' end,
            known.died_in, known.died_as, known.dead_at
        where known.letter_id is not null and known.status <> 'replayed'
        union all
        select 4, case known.gone_reason when 'trimmed' then 'lost' else 'dead' end, known.gone_reason, known.partition,
            known.entry_id, known.gone_at
        where known.gone_at is not null
        union all
        select 5, 'waiting', 'in the outbox', known.partition, known.entry_id, known.spooled_at where known.spooled_at is not null
        union all
        select 6, 'waiting', 'its dead letter was published again', null, null, known.settled_at
        where known.status = 'replayed'
        union all
        select 7, 'lost', 'trimmed before the group was given it', known.partition, known.entry_id, known.detected_at
        where known.detected_at is not null
        union all
        select 8, 'done', 'passed without an effect', known.partition, known.entry_id, known.position_at
        where not penstock_entry_before(known.position, known.entry_id)
        union all
        select 9, 'waiting', 'in the stream', known.partition, known.entry_id, null
        order by rank limit 1
    ) fate
$$;

-- What there is a row of, for each event and group: what is not here is in Redis, or was deleted by retention.
create view penstock_ledger as
select consumer_group, stream as partition, entry_id, event_id, 'done' as fate, 'handled' as reason, handled_at as since
from penstock_inbox inbox
where not exists (
    select from penstock_retry retry
    where retry.event_id = inbox.event_id and retry.consumer_group = inbox.consumer_group and retry.forced
)
union all
select consumer_group, stream, entry_id, event_id, 'retrying', coalesce(error_message, origin), updated_at
from penstock_retry retry
where forced or not exists (
    select from penstock_inbox inbox
    where inbox.event_id = retry.event_id and inbox.consumer_group = retry.consumer_group
)
union all
select consumer_group, stream, entry_id, event_id,
    case reason when 'expired' then 'expired' when 'trimmed' then 'lost' else 'dead' end, reason, dead_at
from penstock_dead_letter letter
where status <> 'replayed'
    and not exists (
        select from penstock_retry retry
        where retry.consumer_group = letter.consumer_group and retry.event_id = letter.event_id
    )
    and not exists (
        select from penstock_retry retry where retry.consumer_group = letter.consumer_group
            and retry.stream = letter.stream and retry.entry_id = letter.entry_id
    )
    and not exists (
        select from penstock_inbox inbox
        where inbox.event_id = letter.event_id and inbox.consumer_group = letter.consumer_group
    )
    and not exists (
        select from penstock_dead_letter later
        where later.event_id = letter.event_id and later.consumer_group = letter.consumer_group
            and later.status <> 'replayed' and later.id > letter.id
    )
union all
select declared.consumer_group, waiting.stream, null, waiting.event_id, 'waiting', 'in the outbox', min(waiting.created_at)
from penstock_outbox waiting join penstock_group declared on declared.stream = waiting.stream
where waiting.kind <> 'mirror'
    and not exists (
        select from penstock_inbox inbox
        where inbox.event_id = waiting.event_id and inbox.consumer_group = declared.consumer_group
    )
    and not exists (
        select from penstock_retry retry
        where retry.event_id = waiting.event_id and retry.consumer_group = declared.consumer_group
    )
    and not exists (
        select from penstock_dead_letter letter
        where letter.event_id = waiting.event_id and letter.consumer_group = declared.consumer_group
            and letter.status <> 'replayed'
    )
group by declared.consumer_group, waiting.stream, waiting.event_id;
