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
    kind       text        not null check (kind in ('spool', 'transaction', 'mirror', 'replay')),
    -- The approximate length to which the stream is cut; a declared lossy cap, or a mirror's.
    max_len    bigint,
    -- The dead letter that a mirror's entry shows.
    letter_id  bigint,
    created_by text        not null default '',
    created_at timestamptz not null default now()
);

create index penstock_outbox_stream_idx on penstock_outbox (stream, id);
create index penstock_outbox_event_id_idx on penstock_outbox (event_id);

create function penstock_outbox_news() returns trigger language plpgsql as $$
begin
    perform pg_notify('penstock_outbox', '');
    return null;
end
$$;

create trigger penstock_outbox_news after insert on penstock_outbox
    for each statement execute function penstock_outbox_news();

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
create index penstock_retry_event_id_idx on penstock_retry (event_id);

-- Entries that were with a process when it died. Written before such an entry is handled again, alone: the one that
-- is here for the second time kills its workers.
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
    add column mirror_id       text,
    add column replays         integer not null default 0,
    add column settled_at      timestamptz,
    add column settled_by      text,
    add column note            text,
    add constraint penstock_dead_letter_status check (status in ('dead', 'replaying', 'replayed', 'discarded'));

create index penstock_dead_letter_status_idx on penstock_dead_letter (status, dead_at);

create table penstock_dead_letter_audit (
    id        bigint      generated always as identity primary key,
    letter_id bigint      not null,
    action    text        not null,
    at        timestamptz not null default now(),
    by        text        not null,
    order_id  uuid,
    note      text
);

create index penstock_dead_letter_audit_letter_idx on penstock_dead_letter_audit (letter_id, id);

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
    detected_at    timestamptz not null default now(),
    constraint penstock_loss_range_key unique (consumer_group, stream, after_id, before_id)
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
    -- The last entry that was replayed, by partition.
    cursors        jsonb       not null default '{}',
    total          bigint,
    replayed       bigint      not null default 0,
    ordered_by     text        not null,
    ordered_at     timestamptz not null default now(),
    finished_at    timestamptz,
    error          text
);
