"""docs/examples/order_streaming.toml as its reader runs it: on embedded servers, and on a cluster."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import trio
from installation import Installation, NotYet, until

sys.path.insert(0, str(Path(__file__).parents[1] / "http"))  # tests are no package

from websocket_client import connect

from penstock.runtime.testing.servers import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
JSON = {"Content-Type": "application/json"}


def shop_in(place: Path, **environment: str) -> Installation:
    """Of the settings that the tutorial uses; their paths are those of the working directory."""
    settings = (EXAMPLES / "order_streaming.toml").read_text().replace("docs/examples", str(EXAMPLES))
    (place / "shop.toml").write_text(settings)
    return Installation(
        place,
        environment={"PENSTOCK_PROFILE": "prod", **environment},
        arguments=("run", "--config", str(place / "shop.toml")),
    )


@pytest.fixture(scope="module")
def shop() -> Iterator[Installation]:
    place = Path(tempfile.mkdtemp(prefix="penstock-it-"))
    place.chmod(0o755)
    made = shop_in(place)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(place, ignore_errors=True)


def call(shop: Installation, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    found, _, answer = shop.request(method, path, None if body is None else json.dumps(body).encode(), JSON)
    if found == 503 and method == "GET":
        raise NotYet(answer)
    assert found == status, answer
    return json.loads(answer)


def place_order(shop: Installation, *items: tuple[int, int]) -> int:
    listed = [{"productId": product, "quantity": quantity, "price": "9.50"} for product, quantity in items]
    return int(call(shop, "POST", "/orders", {"userId": 123, "items": listed}, status=201)["orderId"])


def complete_order(shop: Installation, *items: tuple[int, int]) -> int:
    order_id = place_order(shop, *items)
    call(shop, "POST", f"/orders/{order_id}/complete")
    return order_id


def ranking(shop: Installation, path: str = "/ranking") -> dict[int, int]:
    return {each["productId"]: each["quantity"] for each in call(shop, "GET", path)["ranking"]}


def until_settled(shop: Installation, *, limit: float = 60.0) -> None:
    """Wait until every group has acknowledged everything, and nothing waits in the outbox or for an attempt."""

    waiting = "select (select count(*) from penstock_outbox) + (select count(*) from penstock_retry)"

    def is_quiet(group: dict[str, Any]) -> bool:
        return (group["lag"], group["pending"]) == (0, 0)

    def settled() -> bool:
        """From the outbox to the groups, and from the groups to the second attempts, which go by the outbox."""
        if shop.sql(waiting) != [(0,)]:
            return False
        seen = shop.look("/api/v1/groups")
        return seen["stale"] is None and all(map(is_quiet, seen["groups"])) and shop.sql(waiting) == [(0,)]

    until(settled, limit, "every event has come to its end")


def check_ranking(shop: Installation) -> dict[int, int]:
    """Redis, the rows of order-processing and the orders themselves say the same."""
    found = ranking(shop)
    assert found == ranking(shop, "/ranking/rows")
    sold = shop.sql(
        "select product_id, sum(quantity) from order_item join customer_order using (order_id)"
        " where status = 'completed' group by product_id"
    )
    assert found == {product: int(quantity) for product, quantity in sold}
    return found


def test_the_settings_scale_the_consumers(shop: Installation) -> None:
    names = [
        each["path"].removeprefix("order-streaming/actors/") for each in _walk(shop.get("/api/v1/tree")[1]["tree"])
    ]
    for group, count in (("order-processing", 3), ("ranking-update", 2), ("order-notifications", 1)):
        listeners = [name for name in names if name.startswith(f"{group}@order-events/listener-")]
        assert len(listeners) == count


def test_orders_are_sold_paid_and_cancelled(shop: Installation) -> None:
    kept, taken_back = complete_order(shop, (1, 3), (2, 1)), complete_order(shop, (2, 5))
    call(shop, "POST", f"/orders/{kept}/pay")
    call(shop, "POST", f"/orders/{kept}/pay", status=409)
    call(shop, "POST", f"/orders/{taken_back}/cancel")
    call(shop, "POST", f"/orders/{taken_back}/complete", status=409)
    until_settled(shop)
    assert check_ranking(shop) == {1: 3, 2: 1}
    assert shop.sql("select order_id, amount::text from income") == [(kept, "38.00")]
    told = shop.sql("select text from notification order by sent_at, text")
    assert [text for (text,) in told if f" {taken_back} " in text] == [
        f"Your order {taken_back} is on its way: 47.50 in all.",
        f"Your order {taken_back} is cancelled.",
    ]


async def test_the_metrics_arrive_over_a_websocket(shop: Installation) -> None:
    async with connect(shop.port, "/topic/dashboard/orders") as page:
        before = await page.json()
        await trio.to_thread.run_sync(complete_order, shop, (3, 2))
        with trio.fail_after(30):
            while (told := await page.json())["version"] == before["version"]:
                pass  # the same again, for one who was slow
        assert (told["completed"], told["version"]) == (before["completed"] + 1, before["version"] + 1)
        assert Decimal(told["turnover"]) == Decimal(before["turnover"]) + 19
    await trio.to_thread.run_sync(until_settled, shop)


def test_what_one_group_cannot_handle_is_a_dead_letter_of_that_group_and_replayed_once_it_is_mended(
    shop: Installation,
) -> None:
    complete_order(shop, (99, 2))
    until(lambda: shop.sql("select count(*) from penstock_dead_letter") == [(1,)], 30, "it is dead")
    until(lambda: ranking(shop).get(99) == 2, 30, "the other groups have done their part")
    assert 99 not in ranking(shop, "/ranking/rows")
    with redis.Redis(unix_socket_path=str(shop.directory / ".penstock" / "valkey" / "valkey.sock")) as client:
        until(lambda: client.exists("order-events:dead-letter"), 30, "it is mirrored")
        [(_, fields)] = client.xrange("order-events:dead-letter")
    assert {b"eventType", b"eventId", b"timestamp", b"data", b"originalRecordId", b"errorMessage", b"failedAt"} <= {
        *fields
    }
    assert b"sale_product_id_fkey" in fields[b"errorMessage"]
    call(shop, "PUT", "/products/99/cable")
    done = shop.command("dead-letters", "replay", "--group", "order-processing", "--yes")
    assert done.returncode == 0, done.stderr
    until_settled(shop)
    assert check_ranking(shop)[99] == 2


def test_a_range_is_read_again_into_a_ranking_of_its_own(shop: Installation) -> None:
    for _ in range(2):
        done = shop.command("replay", "order-events", "--from", "0-0")
        assert done.returncode == 0, done.stderr
        until_settled(shop)
        assert ranking(shop, "/ranking/range") == ranking(shop)


def test_killed_under_load_the_ranking_is_exact(shop: Installation) -> None:
    """It has counted an order in Redis, and its transaction cannot end, when it is killed; others are at any point."""
    before = check_ranking(shop)
    home = shop.directory / ".penstock" / "postgres"

    def sell(_: int) -> None:
        with suppress(OSError, AssertionError):  # who is not answered does not know; the rows do
            complete_order(shop, (2, 1))

    # The embedded server goes with the process, and the lock with the server.
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(f"host={home} dbname=penstock user=penstock") as connection,
        ThreadPoolExecutor(4) as buyers,
    ):
        connection.execute("lock table penstock_group_position in access exclusive mode")
        complete_order(shop, (1, 7))
        until(lambda: ranking(shop)[1] == before[1] + 7, 30, "it is counted")
        buyers.map(sell, range(40))
        until(lambda: ranking(shop).get(2, 0) > before.get(2, 0), 30, "others are counted")
        shop.kill()
    shop.start()
    until_settled(shop)
    after = check_ranking(shop)
    assert after[1] == before[1] + 7
    counted = shop.sql("select completed - cancelled from dashboard")
    assert counted == shop.sql("select count(*) from customer_order where status = 'completed'")
    assert after[2] > before.get(2, 0)


def test_on_a_cluster_that_loses_a_master_and_the_process(place: Path) -> None:
    with LocalCluster.make(masters=3) as cluster:
        shop = shop_in(place, PENSTOCK_REDIS_URL=cluster.url)
        try:
            shop.start()
            owner = cluster.master_of("{ranking}:products")
            for number in range(60):
                if number == 15:
                    owner.kill()
                if number == 30:
                    owner.start()
                if number == 45:
                    shop.kill()
                    shop.start()
                complete_order(shop, (number % 3 + 1, 2))
            until_settled(shop)
            assert check_ranking(shop) == {1: 40, 2: 40, 3: 40}
            assert shop.sql("select count(*) from penstock_dead_letter") == [(0,)]
        finally:
            shop.close()


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("children", ()):
        yield from _walk(child)
