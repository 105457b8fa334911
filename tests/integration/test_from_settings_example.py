"""docs/examples/from_settings.toml as its reader runs it, in both profiles on the same embedded servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from installation import Installation, until

DOCS = Path(__file__).parents[2] / "docs"
FILE = "docs/examples/from_settings.toml"


@pytest.fixture
def sales(place: Path) -> Iterator[Installation]:
    (place / "docs").symlink_to(DOCS)  # its paths are those of the working directory: the checkout's root
    made = Installation(place, arguments=("run", "--config", FILE))
    try:
        yield made
    finally:
        made.close()


def publish(sales: Installation, *events: tuple[str, dict[str, Any]]) -> int:
    body = json.dumps([{"eventType": kind, "data": data} for kind, data in events]).encode()
    path = "/api/v1/streams/order-events/events"
    return sales.request("POST", path, body, {"Content-Type": "application/json"})[0]


def sold(sales: Installation) -> list[tuple[str, bool]]:
    return [(str(row[0]), row[1]) for row in sales.sql("select order_id, cancelled from sale order by order_id")]


def children(sales: Installation, child: str) -> list[str]:
    return [each["id"] for each in sales.child(f"sales/actors/{child}")["children"]]


def in_redis(sales: Installation) -> dict[str, tuple[int, int]]:
    """How many consumers each group has, and what is pending in it."""
    path = sales.directory / ".penstock" / "valkey" / "valkey.sock"
    with redis.Redis(unix_socket_path=str(path), decode_responses=True) as client:
        return {each["name"]: (each["consumers"], each["pending"]) for each in client.xinfo_groups("order-events")}


@pytest.mark.timeout(180)
def test_one_file_runs_as_it_is_in_development_and_in_production(sales: Installation) -> None:
    sales.start()
    assert publish(sales, ("ORDER_COMPLETED", {"orderId": "o-1", "price": 9.5})) == 202
    until(lambda: sold(sales) == [("o-1", False)], 20.0, "the order is sold")
    assert children(sales, "order-processing@order-events") == ["keeper", "handler-pool", "listener-1"]
    assert in_redis(sales).keys() == {"order-processing"}
    assert sales.terminate() == 0

    sales.environment["PENSTOCK_PROFILE"] = "prod"
    sales.start()
    assert children(sales, "order-processing@order-events")[2:] == ["listener-1", "listener-2", "listener-3"]
    assert publish(sales, ("ORDER_CANCELLED", {"orderId": "o-1"}), ("ORDER_CANCELLED", {"orderId": "o-2"})) == 202
    until(lambda: sold(sales) == [("o-1", True), ("o-2", True)], 20.0, "both are cancelled")
    assert in_redis(sales)["ranking-update"] == (0, 0)
    assert "group is another program's: made, and left alone" in sales.log

    checked = sales.command("check", "--config", FILE)
    assert checked.returncode == 0, checked.stderr
    assert "of order-events: 3 consumers, 8 workers, batch 5, block 2 s" in checked.stdout
    kinds = {each["name"]: each["declared"] for each in sales.get("/api/v1/groups")[1]["groups"]}
    assert kinds == {"order-processing": True, "ranking-update": False}
