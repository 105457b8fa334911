"""A FastAPI service, on asyncio, that publishes to the tutorial's shop.

penstock run docs/examples/shop.py:system
cd docs/examples && hypercorn publisher_fastapi:app
curl localhost:8000/orders -H 'Content-Type: application/json' -d '{"order_id": "o-1", "price": 9.5}'
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict
from uuid import UUID

from anyio import Path
from attrs import frozen
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from penstock.actors.event import event, new_event_id
from penstock.http.publisher import BufferFull, Publisher, Rejected, Unsent, envelopes_of

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:47170")
KEPT = Path(os.environ.get("KEPT_EVENTS", "kept-events.ndjson"))
STREAM = "order-events"


@event("ORDER_PLACED", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    price: float


class Order(BaseModel):
    order_id: str
    price: float
    event_id: UUID | None = None


class State(TypedDict):
    publisher: Publisher


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    """One publisher for the whole service. What it could not send at its end is kept, and sent at its next start."""
    try:
        async with Publisher(URL, close_within=5) as publisher, asyncio.TaskGroup() as tasks:
            resending = tasks.create_task(resend(publisher))
            yield {"publisher": publisher}
            resending.cancel()
    except Unsent as unsent:
        async with await KEPT.open("a") as file:
            await file.write(unsent.lines(STREAM))


async def resend(publisher: Publisher) -> None:
    """The file goes when all of it is accepted; whatever is sent twice because of that is one effect."""
    if await KEPT.exists():
        await publisher.publish_many(STREAM, envelopes_of(await KEPT.read_text()))
        await KEPT.unlink()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place(order: Order, request: Request) -> dict[str, str]:
    """Answers when the order is durable. After 503 the client repeats it with the same event_id: it is one order."""
    event_id = order.event_id or new_event_id()
    placed = OrderPlaced(order.order_id, order.price)
    try:
        async with asyncio.timeout(5):
            accepted = await request.state.publisher.publish(STREAM, placed, event_id=event_id)
    except TimeoutError:
        raise HTTPException(503, {"eventId": str(event_id), "detail": "again, with this event_id"}) from None
    except Rejected as rejected:
        raise HTTPException(422, rejected.problem) from rejected
    return {"eventId": str(accepted.event_id), "durable": accepted.durable}


@app.post("/orders/later", status_code=202)
async def place_later(order: Order, request: Request) -> dict[str, str]:
    """Answers when the order is in this service's memory."""
    placed = OrderPlaced(order.order_id, order.price)
    try:
        event_id = request.state.publisher.send_nowait(STREAM, placed, event_id=order.event_id)
    except BufferFull as full:
        raise HTTPException(503, str(full)) from full
    return {"eventId": str(event_id)}
