"""Dead letters from end to end on a real installation: buried, shown, replayed through a kill, told by the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from installation import Installation, NotYet, until

COUNT = 60

_SYSTEM = """
from pathlib import Path

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context, Permanent
from penstock.actors.system import System

HERE = Path(__file__).parent


@event("ORDER_PLACED", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


@event("ORDER_SEEN")
@frozen
class OrderSeen:
    order_id: str


system = System("shop", migrations=HERE / "tables")
orders = system.stream("orders", events=[OrderPlaced, OrderSeen])


@orders.on(OrderPlaced, group="payment")
async def pay(order: OrderPlaced, context: Context) -> None:
    if (HERE / "broken").exists():
        raise Permanent("the bank does not answer")
    await context.connection.execute("insert into paid (order_id) values (%s)", (order.order_id,))


@orders.on(OrderSeen, group="audit")
async def see(order: OrderSeen, context: Context) -> None: ...
"""


@pytest.fixture
def shop(place: Path) -> Iterator[Installation]:
    (place / "bank_shop.py").write_text(_SYSTEM)
    (place / "tables").mkdir()
    # No key: an effect that happens twice is a second row.
    (place / "tables" / "0001.paid.sql").write_text("create table paid (order_id text not null)")
    (place / "broken").touch()
    made = Installation(place, arguments=("run", "bank_shop.py:system"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def _post(shop: Installation, path: str, body: Any) -> tuple[int, Any]:
    status, _, answer = shop.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return status, json.loads(answer)


def _dead(shop: Installation) -> int:
    return int(shop.sql("select count(*) from penstock_dead_letter where status = 'dead'")[0][0])


def _mirror(shop: Installation) -> list[tuple[bytes, dict[bytes, bytes]]]:
    with redis.Redis(unix_socket_path=str(shop.directory / ".penstock" / "valkey" / "valkey.sock")) as client:
        return list(client.xrange("orders:dead-letter"))


def _fates(shop: Installation, ids: list[str]) -> set[tuple[str, str]]:
    status, answer = _post(shop, "/api/v1/ledger", {"eventIds": ids})
    if status == 503:
        raise NotYet(answer)
    return {(fate["group"], fate["fate"]) for each in answer["events"] for fate in each["fates"]}


def test_what_died_is_replayed_through_a_kill_and_each_has_one_effect(shop: Installation) -> None:
    ids = [str(uuid4()) for _ in range(COUNT)]
    events = [
        {"eventType": "ORDER_PLACED", "eventId": each, "key": each, "data": {"orderId": each}} for each in ids
    ]  # fmt: skip
    status, _ = _post(shop, "/api/v1/streams/orders/events", events)
    assert status == 202
    until(lambda: _dead(shop) == COUNT, 30.0, "all are dead")
    until(lambda: len(_mirror(shop)) == COUNT, 30.0, "all are shown")
    _, shown = _mirror(shop)[0]
    assert shown[b"originalRecordId"]
    assert shown[b"errorMessage"] == b"the bank does not answer"
    assert json.loads(shown[b"data"])["orderId"] in ids
    until(lambda: _fates(shop, ids) == {("payment", "dead"), ("audit", "done")}, 30.0, "the other group is done")

    (group,) = shop.get("/api/v1/dead-letters/groups")[1]["groups"]
    assert (group["count"], group["errorMessage"], group["group"]) == (COUNT, "the bank does not answer", "payment")
    done = shop.command("dead-letters", "replay", str(group["example"]), "--rate", "1000")  # still broken
    assert done.returncode == 0, done.stderr
    until(lambda: _dead(shop) == COUNT, 30.0, "it is dead again")
    assert len(_mirror(shop)) == COUNT

    (shop.directory / "broken").unlink()
    status, order = _post(
        shop, "/api/v1/dead-letters/replay", {"filter": {"fingerprint": group["fingerprint"]}, "rate": 10}
    )
    assert (status, order["total"]) == (202, COUNT)
    path = f"/api/v1/dead-letters/orders/{order['id']}"
    until(lambda: 0 < shop.look(path)["moved"] < COUNT, 30.0, "it is under way")
    shop.kill()
    shop.start()
    until(lambda: shop.look(path)["replayed"] == COUNT, 60.0, "all are replayed")
    assert shop.look(path)["state"] == "done"
    assert sorted(row[0] for row in shop.sql("select order_id from paid")) == sorted(ids)
    until(lambda: _mirror(shop) == [], 30.0, "nothing is shown any more")
    assert _fates(shop, ids) == {("payment", "done"), ("audit", "done")}
    done = shop.command("ledger", *ids[:3], "--check")
    assert done.returncode == 0, done.stderr
    history = shop.get(f"/api/v1/dead-letters/{group['example']}")[1]["audit"]
    assert [each["action"] for each in history] == ["ordered", "moved", "died", "ordered", "moved", "replayed"]
