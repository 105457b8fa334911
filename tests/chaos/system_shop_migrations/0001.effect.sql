-- Nothing here keeps a second effect out: the checker must be able to see one.
create table effect (
    id             bigint      generated always as identity primary key,
    consumer_group text        not null,
    event_id       uuid        not null,
    event_key      text,
    number         bigint      not null,
    origin         uuid,
    process        text        not null,
    attempt        integer     not null,
    written_at     timestamptz not null default clock_timestamp()
);
