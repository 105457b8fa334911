-- No unique key on the event: were one handled twice, it would show.
create table back_office_action (
    id       bigint      generated always as identity primary key,
    event_id uuid        not null,
    kind     text        not null,
    subject  text        not null,
    server   text        not null,
    done_at  timestamptz not null default now()
);
