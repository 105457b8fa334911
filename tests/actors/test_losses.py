"""The loss detector and the lag repair, on a real Valkey, on Redis 7.0 and in process alike; records in memory."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from penstock.actors.losses import Loss, LossDetector, loss_of
from penstock.actors.stream_view import GroupView, StreamView, id_after, observe
from penstock.actors.testing import MemoryStore
from penstock.runtime.postgres import PostgresUnavailable
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

KEY, GROUP = "orders", "payment"


@pytest.fixture
async def in_process() -> AsyncIterator[Redis]:
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as link:
        yield link


@pytest.fixture(scope="module")
def redis_7_0() -> Iterator[RedisOptions]:
    """Debian's Redis: it counts otherwise than newer servers."""
    program = shutil.which("redis-server")
    if program is None or "v=7.0." not in subprocess.run([program, "-v"], capture_output=True, text=True).stdout:
        pytest.skip("no Redis 7.0 on this machine")
    with tempfile.TemporaryDirectory(prefix="pl-") as directory:
        path = Path(directory) / "s"
        command = [program, "--port", "0", "--unixsocket", str(path), "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        yield RedisOptions(path=str(path), retry_for=10.0)
        process.kill()
        process.wait()


@pytest.fixture(params=["valkey", "redis-7.0", "in-process"])
async def link(request: pytest.FixtureRequest, redis: Redis, in_process: Redis) -> AsyncIterator[Redis]:
    """All fixtures are made, for an asynchronous one cannot be asked for by name."""
    if request.param == "in-process":
        yield in_process
    elif request.param == "valkey":
        await redis.config_set("stream-node-max-entries", 1)
        yield redis
    else:
        async with Redis(request.getfixturevalue("redis_7_0")) as debian:
            yield debian


@frozen
class Subject:
    link: Redis
    store: MemoryStore
    detector: LossDetector

    async def lag(self) -> int | None:
        """What Redis itself says."""
        (group,) = await self.link.xinfo_groups(KEY)
        lag = group["lag"]
        return None if lag is None else int(lag)

    async def read(self, count: int) -> None:
        await self.link.xreadgroup(GROUP, "c", {KEY: ">"}, count=count)

    @property
    def losses(self) -> list[Loss]:
        return [loss for loss, _ in self.store.losses.table.rows.values()]


@pytest.fixture
async def subject(link: Redis) -> Subject:
    """A stream of 100 entries, 1-1 to 1-100, and a group that has read 10 of them."""
    store = MemoryStore()
    made = Subject(link, store, LossDetector(lambda: link, store))
    await link.delete(KEY)
    await link.xgroup_create(KEY, GROUP, id="0", mkstream=True)
    for number in range(1, 101):
        await link.xadd(KEY, {"n": number}, id=f"1-{number}")
    await made.read(10)
    return made


async def test_what_is_trimmed_unread_is_lost_and_counted_exactly(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    view = await subject.detector.look(KEY)
    assert subject.losses == [
        Loss(group=GROUP, stream=KEY, after_id="1-10", before_id="1-51", entries=40, counted_from=10)
    ]
    assert view.groups[0].lag == 50
    assert await subject.lag() == 50


async def test_what_is_trimmed_after_it_was_read_is_no_loss(subject: Subject) -> None:
    await subject.link.xtrim(KEY, minid="1-11", approximate=False)
    await subject.detector.look(KEY)
    assert subject.losses == []
    assert await subject.lag() == 90


async def test_an_emptied_stream_has_lost_all_that_was_unread(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=0, approximate=False)
    await subject.detector.look(KEY)
    (loss,) = subject.losses
    assert (loss.entries, loss.after_id, loss.before_id) == (90, "1-10", "1-101")
    assert await subject.lag() == 0


async def test_a_loss_is_told_once(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    for _ in range(3):
        await subject.detector.look(KEY)
    await LossDetector(lambda: subject.link, subject.store).look(KEY)
    assert len(subject.losses) == 1


async def test_a_second_loss_at_the_same_place_is_counted_apart(subject: Subject) -> None:
    for maxlen in (50, 30):
        await subject.link.xtrim(KEY, maxlen=maxlen, approximate=False)
        await subject.detector.look(KEY)
    assert [loss.entries for loss in subject.losses] == [40, 20]


async def test_a_loss_that_grows_before_its_evidence_is_used_up_stays_one(subject: Subject) -> None:
    """The process dies between the record and the repair: the next one finds the whole of it again."""
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    view = await observe(subject.link, KEY, trio.current_time())
    first = loss_of(view, view.groups[0])
    assert first is not None
    async with subject.store.transaction() as transaction:
        assert await subject.store.losses.add(transaction, first)
    await subject.link.xtrim(KEY, maxlen=30, approximate=False)
    await subject.detector.look(KEY)
    (loss,) = subject.losses
    assert (loss.entries, loss.before_id) == (60, "1-71")


async def test_evidence_is_kept_while_it_cannot_be_written_down(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    subject.store.refuse("away")
    with pytest.raises(PostgresUnavailable):
        await subject.detector.look(KEY)
    subject.store.restore()
    await subject.detector.look(KEY)
    assert [loss.entries for loss in subject.losses] == [40]


async def test_the_lag_is_right_after_the_group_read_on(subject: Subject) -> None:
    """Redis would say 85 for ever."""
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    await subject.detector.look(KEY)
    await subject.read(5)
    assert await subject.lag() == 45


async def test_a_wrong_lag_is_mended_although_the_loss_was_not_seen(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    await subject.read(5)
    assert await subject.lag() in (45, 85)  # Redis 7.0 says 85, Valkey 9 counts again by itself
    view = await subject.detector.look(KEY)
    assert view.groups[0].lag == 45
    assert await subject.lag() == 45


async def test_a_deleted_unread_entry_is_a_loss_and_the_lag_is_counted(subject: Subject) -> None:
    await subject.link.xdel(KEY, "1-40", "1-41")
    assert await subject.lag() is None
    view = await subject.detector.look(KEY)
    assert view.groups[0].lag == 88
    assert [(loss.entries, loss.before_id) for loss in subject.losses] == [(2, "1-42")]
    await subject.detector.look(KEY)
    assert len(subject.losses) == 1


async def test_deleting_what_was_read_is_no_loss(subject: Subject) -> None:
    await subject.link.xdel(KEY, "1-3", "1-4")
    await subject.detector.look(KEY)
    assert subject.losses == []
    assert await subject.lag() == 90


async def test_a_group_that_comes_after_a_trim_has_lost_nothing(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    await subject.link.xgroup_create(KEY, "late", id="0")
    await subject.link.xgroup_destroy(KEY, GROUP)
    await subject.detector.look(KEY)
    assert subject.losses == []
    await subject.link.xtrim(KEY, maxlen=30, approximate=False)
    await subject.detector.look(KEY)
    assert [(loss.group, loss.entries) for loss in subject.losses] == [("late", 20)]


async def test_pending_entries_are_left_alone_by_the_repair(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    await subject.detector.look(KEY)
    summary = await subject.link.xpending(KEY, GROUP)
    assert summary["pending"] == 10


async def test_a_stream_that_does_not_exist_is_empty(link: Redis) -> None:
    store = MemoryStore()
    view = await LossDetector(lambda: link, store).look("nothing")
    assert (view.length, view.last_id, view.groups) == (0, "0-0", ())


# Without counters, as before Redis 7.0


def _old(**facts: Any) -> tuple[StreamView, GroupView]:
    group = GroupView(name=GROUP, lag=None, pending=0, consumers=1, last_delivered_id="1-10", **facts)
    return StreamView(key=KEY, length=50, last_id="1-100", observed_at=0, first_id="1-51", groups=(group,)), group


def test_without_counters_a_gap_alone_proves_nothing() -> None:
    assert loss_of(*_old(next_id="1-51")) is None


def test_without_counters_an_entry_that_was_next_and_is_gone_proves_a_loss() -> None:
    loss = loss_of(*_old(next_id="1-51", vanished=True))
    assert loss is not None
    assert (loss.entries, loss.after_id, loss.before_id, loss.counted_from) == (None, "1-10", "1-51", -1)


async def test_an_expected_entry_that_is_gone_is_seen(subject: Subject) -> None:
    await subject.link.xtrim(KEY, maxlen=50, approximate=False)
    view = await observe(subject.link, KEY, 0.0, {GROUP: "1-11"})
    assert view.groups[0].vanished
    view = await observe(subject.link, KEY, 0.0, {GROUP: "1-51"})
    assert not view.groups[0].vanished


@pytest.mark.parametrize(("entry_id", "after"), [("1-1", "1-2"), (f"7-{2**64 - 1}", "8-0"), ("0-0", "0-1")])
def test_the_id_after(entry_id: str, after: str) -> None:
    assert id_after(entry_id) == after


async def test_a_look_whose_connection_breaks_is_taken_again(autojump_clock: trio.testing.MockClock) -> None:
    options = RedisOptions(retry_for=5.0)
    async with InProcessRedis() as server, Redis(options, connect=server.connect) as link:
        await link.xadd(KEY, {"n": 1}, id="1-1")
        await observe(link, KEY, 0.0)
        server.cut_after(1, "after", command="EVALSHA")
        assert (await observe(link, KEY, 0.0)).length == 1
