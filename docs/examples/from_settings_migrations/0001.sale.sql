create table sale (
    order_id text primary key,
    price numeric,
    cancelled boolean not null default false
);
