-- Entries that somebody deleted by a command of ours (`penstock delete`), which says who, and which groups lost them by it.
create table penstock_deletion (
    -- The key of the partition.
    stream     text        not null,
    entry_id   text        not null,
    -- Of the event that the entry carried; null if it carried none.
    event_id   uuid,
    event_type text,
    -- The groups that had not been given it, and those that had not acknowledged it.
    unread_by  text[]      not null,
    pending_by text[]      not null,
    deleted_by text        not null,
    deleted_at timestamptz not null default now(),
    primary key (stream, entry_id)
);

create index penstock_deletion_event_idx on penstock_deletion (event_id);
create index penstock_deletion_deleted_at_idx on penstock_deletion (deleted_at);

-- How many entries between two others (of a `penstock_loss`) were deleted so before a group was given them.
create function penstock_deleted_unread(for_group text, in_stream text, after_id text, before_id text) returns bigint
language sql stable as $$
    select count(*) from penstock_deletion deletion
    where deletion.stream = in_stream and for_group = any(deletion.unread_by)
        and penstock_entry_before(after_id, deletion.entry_id) and penstock_entry_before(deletion.entry_id, before_id)
$$;

-- As before; and of an event whose entry was deleted so it says by whom.
create or replace function penstock_fate(variadic wanted uuid[]) returns table (
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
    ), erased as (
        select * from penstock_deletion found where found.event_id = any(wanted)
    ), trace as (
        select inbox.event_id, inbox.stream, inbox.entry_id from inbox
        union select retry.event_id, retry.stream, retry.entry_id from retry
        union select letter.event_id, letter.stream, letter.entry_id from letter
        union select erased.event_id, erased.stream, erased.entry_id from erased
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
            erased.deleted_by, erased.deleted_at, declared.consumer_group = any(erased.unread_by) as deleted_unread,
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
        left join erased on erased.stream = concerned.partition and erased.entry_id = concerned.entry_id
        left join outbox on outbox.event_id = concerned.event_id and outbox.stream = declared.stream
        left join penstock_group_position position
            on position.consumer_group = declared.consumer_group and position.stream = concerned.partition
        left join lateral (
            select max(gap.detected_at) as detected_at from penstock_loss gap
            where gap.consumer_group = declared.consumer_group and gap.stream = concerned.partition
                and penstock_entry_before(gap.after_id, concerned.entry_id)
                and penstock_entry_before(concerned.entry_id, gap.before_id)
                and coalesce(gap.entries, 1)
                    > penstock_deleted_unread(gap.consumer_group, gap.stream, gap.after_id, gap.before_id)
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
        select 4, case known.gone_reason when 'trimmed' then 'lost' else 'dead' end,
            case known.gone_reason when 'trimmed'
                then coalesce('deleted by ' || known.deleted_by || ' while it was pending', 'trimmed')
                else known.gone_reason end,
            known.partition, known.entry_id, known.gone_at
        where known.gone_at is not null
        union all
        select 5, 'waiting', 'in the outbox', known.partition, known.entry_id, known.spooled_at where known.spooled_at is not null
        union all
        select 6, 'waiting', 'its dead letter was published again', null, null, known.settled_at
        where known.status = 'replayed'
        union all
        select 7, 'lost', 'deleted by ' || known.deleted_by || ' before the group was given it', known.partition, known.entry_id,
            known.deleted_at
        where known.deleted_unread
        union all
        select 8, 'lost', 'trimmed before the group was given it', known.partition, known.entry_id, known.detected_at
        where known.detected_at is not null
        union all
        select 9, 'done', 'passed without an effect', known.partition, known.entry_id, known.position_at
        where not penstock_entry_before(known.position, known.entry_id)
        union all
        select 10, 'waiting', 'in the stream', known.partition, known.entry_id, null
        order by rank limit 1
    ) fate
$$;
