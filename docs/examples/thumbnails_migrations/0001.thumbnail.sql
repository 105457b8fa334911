-- Nothing here is unique: a job that had two effects would be seen.
create table thumbnail (
    id      bigint generated always as identity primary key,
    image   text        not null,
    width   integer     not null,
    pid     integer     not null,
    made_at timestamptz not null default now()
);
