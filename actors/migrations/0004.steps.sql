-- What handlers have begun and done outside of their transactions (`Context.once`), until the event is handled: the
-- transaction that handles it takes its steps out, for from then on the inbox knows.
create table penstock_step (
    consumer_group text        not null,
    event_id       uuid        not null,
    name           text        not null,
    stream         text        not null,
    state          text        not null check (state in ('begun', 'done')),
    updated_at     timestamptz not null default now(),
    primary key (consumer_group, event_id, name)
);

create index penstock_step_updated_at_idx on penstock_step (updated_at);
