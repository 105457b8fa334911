-- The order service's own.

create table customer_order (
    order_id     bigint         generated always as identity (start with 101) primary key,
    user_id      bigint         not null,
    status       text           not null default 'open' check (status in ('open', 'completed', 'cancelled')),
    total_amount numeric(12, 2) not null,
    placed_at    timestamptz    not null default now()
);

create table order_item (
    order_id   bigint         not null references customer_order,
    product_id bigint         not null,
    quantity   integer        not null check (quantity > 0),
    price      numeric(12, 2) not null check (price >= 0)
);
create index order_item_order on order_item (order_id);

create table payment (
    payment_id bigint         generated always as identity primary key,
    order_id   bigint         not null unique references customer_order,
    amount     numeric(12, 2) not null,
    paid_at    timestamptz    not null default now()
);

-- What the groups make of its events.

create table product (
    product_id bigint primary key,
    name       text   not null
);
insert into product (product_id, name) values (1, 'keyboard'), (2, 'mouse'), (3, 'screen');

create table sale ( -- a cancellation has negative numbers
    event_id   uuid           not null,
    order_id   bigint         not null,
    product_id bigint         not null references product,
    quantity   integer        not null,
    amount     numeric(12, 2) not null
);
create index sale_product on sale (product_id);

create table income (
    event_id uuid           primary key,
    order_id bigint         not null,
    amount   numeric(12, 2) not null
);

create table notification (
    event_id uuid        primary key,
    user_id  bigint      not null,
    text     text        not null,
    sent_at  timestamptz not null default now()
);

create table dashboard ( -- one row
    only_one  boolean        primary key default true check (only_one),
    version   bigint         not null default 0,
    completed bigint         not null default 0,
    cancelled bigint         not null default 0,
    paid      bigint         not null default 0,
    turnover  numeric(14, 2) not null default 0,
    income    numeric(14, 2) not null default 0
);
insert into dashboard default values;
