create table payment (
    payment_id bigint         generated always as identity primary key,
    order_id   uuid           not null unique,
    user_id    text           not null,
    product_id text           not null,
    price      numeric(12, 2) not null check (price >= 0),
    paid_at    timestamptz    not null default now()
);

create table mail (
    message_id text        primary key,
    recipient  text        not null,
    subject    text        not null,
    sent_at    timestamptz not null default now()
);
