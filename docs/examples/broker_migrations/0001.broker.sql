create table activity (
    user_id text primary key,
    events bigint not null,
    last_event text not null,
    last_at timestamptz not null
);
