-- What was handled, in the order in which it was.
create table handled (
    id     bigint  generated always as identity primary key,
    kind   text    not null,
    key    text    not null,
    number integer not null,
    pid    integer not null,
    at     timestamptz not null default clock_timestamp()
);
