"""Dead letters, losses, checks and the ledger where they are hardest: partitions, an ordered group, a Redis Cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from attrs import define
from installation import Installation, until

from penstock.runtime.testing.servers import LocalCluster

KEYS, EACH = 60, 8
"""Orders, and events of each."""

PARTITIONS = 3

pytestmark = pytest.mark.timeout(300)

_SYSTEM = f"""
from pathlib import Path

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context, Permanent
from penstock.actors.system import System

HERE = Path(__file__).parent


@event("STEP", key="order_id")
@frozen
class Step:
    order_id: str
    number: int


system = System("steps", migrations=HERE / "tables")
orders = system.stream("orders", events=[Step], partitions={PARTITIONS})
orders.group("ledger", ordered=True)
orders.group("audit")


@orders.on(Step, group="ledger")
async def book(step: Step, context: Context) -> None:
    if (HERE / "broken").exists() and step.number % 2:
        raise Permanent("the bank does not answer")
    await context.connection.execute(
        "insert into step (order_id, number) values (%s, %s)", (step.order_id, step.number)
    )


@orders.on(Step, group="audit")
async def see(step: Step, context: Context) -> None: ...
"""


@define(eq=False)
class Shop:
    """Penstock on a cluster of three masters, each with a replica."""

    cluster: LocalCluster
    installation: Installation

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        status, _, answer = self.installation.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return status, json.loads(answer)

    def publish(self, count: int = EACH) -> list[str]:
        """`count` steps of `KEYS` new orders, one step of all after the other; the events' ids."""
        orders = [str(uuid4()) for _ in range(KEYS)]
        events = [
            {"eventType": "STEP", "eventId": str(uuid4()), "key": order, "data": {"orderId": order, "number": number}}
            for number in range(count)
            for order in orders
        ]
        status, _ = self.post("/api/v1/streams/orders/events", events)
        assert status == 202
        return [str(each["eventId"]) for each in events]

    def letters(self) -> dict[str, int]:
        return dict(self.installation.sql("select status, count(*) from penstock_dead_letter group by 1"))

    def fates(self, ids: list[str]) -> Counter[tuple[str, str]]:
        """By `penstock ledger`; holds that there is exactly one for each event and group."""
        file = self.installation.directory / "ids.txt"
        file.write_text("\n".join(ids))
        done = self.installation.command("ledger", "--from-file", str(file), "--json")
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["eventId"] for each in told] == ids
        assert all(sorted(str(fate["group"]) for fate in each["fates"]) == ["audit", "ledger"] for each in told)
        return Counter((fate["group"], fate["fate"]) for each in told for fate in each["fates"])

    def on(self, key: str, *words: Any) -> Any:
        """The reply of the master that has the key."""
        with self.cluster.admin(self.cluster.master_of(key)) as admin:
            return admin.execute_command(*words)

    def lags(self, key: str) -> set[Any]:
        """How many entries are left for each group, as Redis says."""
        return {group["lag"] for group in self.on(key, "XINFO", "GROUPS", key)}

    def shown(self) -> int:
        """Entries of the stream that shows dead letters."""
        return int(self.on("orders:dead-letter", "XLEN", "orders:dead-letter"))

    def until_refused(self, *words: str) -> None:
        """Wait until the gate stays shut for a cause with these words."""

        def cause() -> str:
            gates = self.installation.get("/readyz")[1]["gates"]
            return next((str(gate["cause"]) for gate in gates if gate["name"] == "redis"), "")

        until(lambda: all(word in cause() for word in words), 30.0, f"refused for {words}")

    def until_ready(self) -> None:
        until(lambda: self.installation.get("/readyz")[0] == 200, 30.0, "ready again")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    place: Path = tmp_path_factory.mktemp("shop")
    place.chmod(0o755)
    (place / "steps.py").write_text(_SYSTEM)
    (place / "tables").mkdir()
    # No key: an effect that happens twice is a second row. The identity tells the order of the commits of a key.
    (place / "tables" / "0001.step.sql").write_text(
        "create table step (id bigint generated always as identity, order_id text not null, number int not null)"
    )
    with LocalCluster.make(masters=3, replicas=1, node_timeout=15.0) as cluster:
        environment = {"PENSTOCK_REDIS_URL": cluster.url, "PENSTOCK_LOG_FORMAT": "json"}
        made = Installation(place, environment=environment, arguments=("run", "steps.py:system"))
        try:
            made.start()
            yield Shop(cluster, made)
        finally:
            made.close()


def test_letters_of_an_ordered_group_are_replayed_in_order_through_a_kill_and_a_failover(shop: Shop) -> None:
    broken = shop.installation.directory / "broken"
    broken.touch()
    ids = shop.publish()
    total, dead = KEYS * EACH, KEYS * EACH // 2
    until(lambda: shop.letters() == {"dead": dead}, 60.0, "every second step is dead")
    until(lambda: shop.shown() == dead, 30.0, "all are shown")
    until(lambda: shop.fates(ids)["audit", "done"] == total, 30.0, "the other group is done")
    assert shop.fates(ids) == {("ledger", "done"): dead, ("ledger", "dead"): dead, ("audit", "done"): total}

    broken.unlink()
    status, order = shop.post("/api/v1/dead-letters/replay", {"filter": {"group": "ledger"}, "rate": 60})
    assert (status, order["total"]) == (202, dead)
    path = f"/api/v1/dead-letters/orders/{order['id']}"
    until(lambda: shop.installation.look(path)["moved"] > 30, 30.0, "it is under way")
    owner = shop.cluster.master_of("{orders:0}")
    with shop.cluster.giving_up_after(1.0):
        owner.kill()
        shop.installation.kill()
        shop.installation.start()
        until(lambda: shop.installation.look(path)["replayed"] == dead, 90.0, "all are replayed")
    owner.start()

    steps = shop.installation.sql("select order_id, array_agg(number order by id) from step group by 1")
    odd, even = list(range(1, EACH, 2)), list(range(0, EACH, 2))
    assert {tuple(numbers) for _, numbers in steps} == {(*even, *odd)}
    assert len(steps) == KEYS
    until(lambda: shop.shown() == 0, 30.0, "nothing is shown any more")
    assert shop.letters() == {"replayed": dead}
    assert shop.fates(ids) == {("ledger", "done"): total, ("audit", "done"): total}


def test_letters_that_are_published_again_are_handled_once_and_by_their_group_alone(shop: Shop) -> None:
    broken = shop.installation.directory / "broken"
    broken.touch()
    ids = shop.publish(2)
    until(lambda: shop.letters().get("dead") == KEYS, 30.0, "every second step is dead")
    broken.unlink()
    status, order = shop.post("/api/v1/dead-letters/replay", {"filter": {}, "to": "stream", "rate": 1000})
    assert (status, order["total"]) == (202, KEYS)
    done = {("ledger", "done"): KEYS * 2, ("audit", "done"): KEYS * 2}
    until(lambda: shop.fates(ids) == done, 30.0, "all are done")
    assert shop.letters().get("dead", 0) == 0
    twice = "select count(*) from (select from step group by order_id, number having count(*) > 1) as twice"
    assert shop.installation.sql(twice) == [(0,)]


def test_one_node_that_would_lose_events_keeps_the_gate_shut_until_it_is_mended(shop: Shop) -> None:
    node = shop.cluster.master_of("{orders:1}")
    with shop.cluster.admin(node) as admin:
        admin.config_set("maxmemory", "1gb")
        admin.config_set("maxmemory-policy", "allkeys-lru")
        shop.installation.terminate(30.0)
        shop.installation.start_unready()
        shop.until_refused(f"{node.port}", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction")
        admin.config_set("maxmemory-policy", "noeviction")
        shop.until_ready()
        admin.execute_command("ACL", "SETUSER", "default", "-xclaim")
        shop.installation.terminate(30.0)
        shop.installation.start_unready()
        shop.until_refused("XCLAIM", "{orders:1}")
        admin.execute_command("ACL", "SETUSER", "default", "+xclaim")
        shop.until_ready()


def test_what_somebody_trims_unread_is_counted_by_partition_and_the_rest_is_handled(shop: Shop) -> None:
    total = 10
    shop.installation.terminate(30.0)
    left: list[str] = []
    for number in range(PARTITIONS):
        key = f"{{orders:{number}}}"
        ids = [str(uuid4()) for _ in range(total)]
        for each in ids:
            fields = ("eventId", each, "eventType", "STEP", "timestamp", "2026-01-01T00:00:00Z", "key", each)
            shop.on(key, "XADD", key, "*", *fields, "data", json.dumps({"orderId": each, "number": 0}))
        shop.on(key, "XTRIM", key, "MAXLEN", "=", number + 1)
        left += ids[total - number - 1 :]
    shop.installation.start()
    lost = "select stream, consumer_group, entries from penstock_loss order by 1, 2"
    expected = [
        (f"{{orders:{number}}}", group, total - number - 1)
        for number in range(PARTITIONS)
        for group in ("audit", "ledger")
    ]
    until(lambda: shop.installation.sql(lost) == expected, 30.0, "the losses are written down")
    for number in range(PARTITIONS):
        until(lambda number=number: shop.lags(f"{{orders:{number}}}") == {0}, 20.0, "nothing is left")  # type: ignore[misc]
    until(lambda: set(shop.fates(left)) == {("audit", "done"), ("ledger", "done")}, 20.0, "the rest is handled")
