create table activity (
    user_id    text        primary key,
    events     bigint      not null,
    last_event text        not null,
    last_at    timestamptz not null
);

create table report (
    report_id  uuid        primary key,
    user_id    text        not null,
    events     bigint      not null,
    written_at timestamptz not null default now()
);
