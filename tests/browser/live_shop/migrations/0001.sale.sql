create table sale (order_id text primary key, price double precision not null)
