"""A server for the publisher that does what a script says, and a way to run a story on asyncio and on trio."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
import trio.testing
from attrs import define, field

Events = list[dict[str, Any]]
Step = Callable[[Events], "Awaitable[httpx.Response]"]


def on_both(story: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Run an async test on asyncio and, in virtual time, on trio; the plugin for trio alone sees a plain function."""

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def run(backend: str) -> None:
        options = {"clock": trio.testing.MockClock(autojump_threshold=0)} if backend == "trio" else {}
        anyio.run(story, backend=backend, backend_options=options)

    run.__name__ = story.__name__
    run.__doc__ = story.__doc__
    return run


@define(eq=False)
class ScriptedServer(httpx.AsyncBaseTransport):
    """Answers requests with the steps of its script, one after the other, and then accepts everything.

    Attributes:
        script: steps to come.
        requests: the events of each request, as they came.
        streams: the stream of each request.
        accepted: the events that it has taken, in order; what it took without saying so, too.
        at: when each request came, in the event loop's seconds.
        busy: requests under way, by stream.
        most_busy: the most of them at a time, of any stream.
    """

    script: list[Step] = field(factory=list)
    requests: list[Events] = field(factory=list)
    streams: list[str] = field(factory=list)
    accepted: Events = field(factory=list)
    at: list[float] = field(factory=list)
    busy: dict[str, int] = field(factory=dict)
    most_busy: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        events = [json.loads(line) for line in request.content.splitlines()]
        stream = request.url.path.split("/")[4]
        self.requests.append(events)
        self.streams.append(stream)
        self.at.append(anyio.current_time())
        self.busy[stream] = self.busy.get(stream, 0) + 1
        self.most_busy = max(self.most_busy, self.busy[stream])
        try:
            await anyio.lowlevel.checkpoint()
            step = self.script.pop(0) if self.script else self.accept
            return await step(events)
        finally:
            self.busy[stream] -= 1

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self)

    @property
    def accepted_ids(self) -> list[str]:
        """The ids in the order of their first acceptance."""
        return list(dict.fromkeys(each["eventId"] for each in self.accepted))

    # Steps ----------------------------------------------------------------------------------------------------------

    async def accept(self, events: Events) -> httpx.Response:
        self.accepted += events
        return lines([accepted(event) for event in events])

    async def lose_the_answer(self, events: Events) -> httpx.Response:
        self.accepted += events
        raise httpx.ReadError("cut in the middle")

    async def say_nothing(self, events: Events) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    async def refuse_connections(self, events: Events) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def answer(self, response: httpx.Response) -> Step:
        async def step(events: Events) -> httpx.Response:
            return response

        return step

    def judge(self, verdicts: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Step:
        """Accept events but those for which `verdicts` has an error."""

        async def step(events: Events) -> httpx.Response:
            results = []
            for event in events:
                error = verdicts(event)
                if error is None:
                    self.accepted.append(event)
                results.append(accepted(event) if error is None else {"error": error})
            return lines(results)

        return step

    def when(self, gate: anyio.Event, then: Step | None = None) -> Step:
        """Wait for `gate` first."""

        async def step(events: Events) -> httpx.Response:
            await gate.wait()
            return await (then or self.accept)(events)

        return step


def accepted(event: dict[str, Any], durable: str = "redis") -> dict[str, Any]:
    return {"eventId": event["eventId"], "entryId": "1-0" if durable == "redis" else None, "durable": durable}


def lines(results: list[dict[str, Any]]) -> httpx.Response:
    body = "".join(json.dumps(each) + "\n" for each in results).encode()
    return httpx.Response(202, content=body, headers={"Content-Type": "application/x-ndjson"})


def problem(status: int, name: str = "unavailable", **members: Any) -> httpx.Response:
    headers = {"Retry-After": str(members.pop("header"))} if "header" in members else {}
    body = {
        "type": f"urn:penstock:problem:{name}",
        "title": name,
        "status": status,
        "detail": f"told {name}",
        **members,
    }
    return httpx.Response(status, json=body, headers=headers)


async def until(true: Callable[[], Any]) -> None:
    """Let others go on until `true()`; no time passes."""
    while not true():
        await anyio.lowlevel.checkpoint()
