"""Work queues over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import frozen
from quart_trio import QuartTrio

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.problems import install
from penstock.http.queues import queues

QUEUE = "thumbnails"
JOB = {"eventType": "RESIZE_IMAGE", "data": {"number": 1}}


@event("RESIZE_IMAGE")
@frozen
class ResizeImage:
    number: int


@frozen
class Site:
    app: VirtualDeployment[Any]
    client: Any

    async def get(self) -> tuple[int, Any]:
        answer = await self.client.get("/api/v1/queues")
        return answer.status_code, await answer.get_json()

    async def put(self, body: Any, queue: str = QUEUE) -> tuple[int, Any]:
        answer = await self.client.post(f"/api/v1/queues/{queue}/jobs", json=body)
        return answer.status_code, await answer.get_json()


@asynccontextmanager
async def _site() -> AsyncIterator[Site]:
    system = System("images")

    @system.queue(QUEUE, workers=2).on(ResizeImage)
    async def resize(job: ResizeImage, context: Context) -> None:
        await trio.sleep(5)
        await context.connection.execute("insert", [job.number])

    async with virtual(system) as app:
        pages = QuartTrio("pages")
        install(pages)
        pages.register_blueprint(queues(app.deployment))
        yield Site(app, pages.test_client())


async def test_a_job_is_accepted_shown_and_handled(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        ids = [(await site.put({**JOB, "data": {"number": number}}))[1]["eventId"] for number in range(5)]
        assert len(set(ids)) == 5
        await trio.sleep(2)
        status, found = await site.get()
        assert status == 200
        [queue] = found["queues"]
        assert (queue["name"], queue["workers"], queue["waiting"], queue["returned"]) == (QUEUE, 2, 3, 0)
        assert [(each["name"], each["taken"]) for each in queue["consumers"]] == [("test", 2)]
        assert queue["oldest"] is not None
        status, again = await site.put({**JOB, "eventId": ids[0], "data": {"number": 0}})
        assert (status, again) == (202, {"eventId": ids[0]})
        await site.app.settled()
        assert sorted(effect.values[0] for effect in site.app.store.effects) == list(range(5))


async def test_what_is_no_job_is_refused_with_what_is_wrong(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        for body, status, kind in (
            ({}, 422, "invalid-event"),
            ({**JOB, "data": {"number": "one"}}, 422, "invalid-event"),
            ({**JOB, "eventType": "CROP_IMAGE"}, 422, "invalid-event"),
            ({**JOB, "more": 1}, 422, "invalid-event"),
            ([JOB], 400, "invalid-parameter"),
        ):
            answer = await site.put(body)
            assert (answer[0], answer[1]["type"].rpartition(":")[2]) == (status, kind), body
        status, told = await site.put(JOB, "other")
        assert (status, told["queues"]) == (404, [QUEUE])
        assert await site.app.deployment.queueing.is_empty()


async def test_while_redis_takes_nothing_it_is_refused_with_the_id_to_come_again_with(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _site() as site:
        site.app.redis.answer("out-of-memory")
        status, told = await site.put(JOB)
        assert (status, told["type"].rpartition(":")[2], told["outcomeUnknown"]) == (503, "redis-away", False)
        assert told["eventId"]
        site.app.redis.heal()
        site.app.redis.fail_next("LPUSH", "WRONGTYPE Operation against a key holding the wrong kind of value")
        status, told = await site.put(JOB)
        assert (status, told["type"].rpartition(":")[2]) == (502, "refused-by-redis")
        await site.app.serving()
        site.app.redis.cut_after(1, command="LPUSH")
        status, told = await site.put(JOB)
        assert (status, told["outcomeUnknown"]) == (503, True)
        await site.app.serving()
        assert (await site.put({**JOB, "eventId": told["eventId"]}))[0] == 202
        await site.app.settled()
        assert len(site.app.store.effects) == 1
        site.app.redis.refuse()
        site.app.redis.cut()
        await trio.sleep(60)
        assert (await site.put(JOB))[0] == (await site.get())[0] == 503
