"""Sending one stream's events: request after request, until each event has its outcome."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import anyio
import httpx
from attrs import define, field, frozen
from attrs.validators import ge, gt, optional

from ...runtime.telemetry import get_logger
from ..answers import Accepted, Again, Refused, Smaller, Verdict, read_answer
from .errors import GaveUp, NotPublished, Rejected

if TYPE_CHECKING:
    from .item import Item
    from .lane import Lane

__all__ = ["Pace", "Sender"]

log = get_logger(__name__)

LONGEST_ASKED = 60.0
"""Seconds of a Retry-After that are kept to: a proxy that says "in a day" is asked again all the same."""

HURRIED = 0.5
"""Seconds that a pause has at the most while the publisher is being left."""

BUGS = 5
"""Times that the server may fail (500) over one event alone before this counts as a refusal."""

_NDJSON = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson, application/problem+json"}


@frozen(kw_only=True)
class Pace:
    """How events are gathered and sent; `Publisher` documents each."""

    buffer_size: int = field(validator=gt(0))
    buffer_bytes: int = field(validator=gt(0))
    batch_size: int = field(validator=gt(0))
    batch_bytes: int = field(validator=gt(0))
    linger: float = field(validator=ge(0))
    request_timeout: float = field(validator=gt(0))
    give_up_after: float | None = field(validator=optional(gt(0)))
    close_within: float = field(validator=ge(0))
    first_pause: float = 0.1
    longest_pause: float = 10.0


@define
class _Progress:
    """How far a request has come: until there is a connection, none of it can have reached a server.

    Attributes:
        may_be_sent: false only while a connection for it is being opened, or after that failed.
    """

    may_be_sent: bool = True

    async def follow(self, step: str, _details: object) -> None:
        """What httpx's ``trace`` extension calls; other transports than its own do not."""
        if step.endswith(".send_request_headers.started"):
            self.may_be_sent = True
        elif step.startswith("connection.connect_") and step.endswith(".started"):
            self.may_be_sent = False


@define(eq=False)
class Sender:
    """What the senders of all streams share.

    Attributes:
        client: sends the requests.
        url: of the server.
        pace: how.
        settle: called with each event that has an outcome.
        hurry: set when the publisher is being left.
        requests: how many were sent.
        sent_again: how many events were sent again, counted each time.
        trouble: why the last request failed; empty after one that did not.
    """

    client: httpx.AsyncClient
    url: str
    pace: Pace
    settle: Callable[[Item, Accepted | NotPublished], None]
    hurry: anyio.Event = field(factory=anyio.Event)
    requests: int = 0
    sent_again: int = 0
    trouble: str = ""

    async def drive(self, lane: Lane) -> None:
        """Send what the lane holds and what comes meanwhile; returns when it is empty.

        Cancelled, it leaves in the lane what has no outcome; what was under way is marked as perhaps accepted.
        """
        await self._linger(lane)
        limit, failures = self.pace.batch_size, 0
        lane.take(limit, self.pace.batch_bytes)
        while lane.flying:
            batch = tuple(lane.flying)
            verdicts = await self._attempt(lane, batch)
            again = self._take_in(lane, batch, verdicts)
            if _too_much(verdicts):
                limit = max(1, len(lane.flying) // 2)
                lane.put_back(limit)
            elif again is not None:
                await self._pause(lane, again, failures)
                failures += 1
            else:
                limit, failures = min(2 * limit, self.pace.batch_size), 0
            lane.take(limit, self.pace.batch_bytes)

    async def _linger(self, lane: Lane) -> None:
        if not self.hurry.is_set():
            with anyio.move_on_after(self.pace.linger):
                await lane.full.wait()

    # One request ----------------------------------------------------------------------------------------------------

    async def _attempt(self, lane: Lane, batch: Sequence[Item]) -> Sequence[Verdict]:
        verdicts: Sequence[Verdict] = ()
        answered = False
        progress = _Progress()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._give_up_meanwhile, lane, group.cancel_scope)
                verdicts = await self._request(lane.stream, batch, progress)
                group.cancel_scope.cancel()
            answered = bool(verdicts)
            return verdicts or [Again(self._too_late(), unknown=progress.may_be_sent)] * len(batch)
        finally:
            for item in batch if not answered and progress.may_be_sent else ():
                item.maybe = True

    async def _request(self, stream: str, batch: Sequence[Item], progress: _Progress) -> Sequence[Verdict]:
        self.requests += 1
        url = f"{self.url}/api/v1/streams/{quote(stream, safe='')}/events"
        body = b"".join(item.line + b"\n" for item in batch)
        why = f"no answer within {self.pace.request_timeout:g} s"
        extensions = {"trace": progress.follow}
        try:
            # httpx has limits for each step only; a server that sends a byte now and then would hold us for ever.
            with anyio.move_on_after(self.pace.request_timeout):
                answer = await self.client.post(url, content=body, headers=_NDJSON, extensions=extensions)
                return read_answer(
                    answer.status_code, answer.headers, answer.content, [each.event_id for each in batch]
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why, progress.may_be_sent = f"the server cannot be reached: {_words(error)}", False
        except (httpx.RequestError, httpx.StreamError) as error:
            why = f"the connection broke: {_words(error)}"
        return [Again(why, unknown=progress.may_be_sent)] * len(batch)

    # Its answer -----------------------------------------------------------------------------------------------------

    def _take_in(self, lane: Lane, batch: Sequence[Item], verdicts: Sequence[Verdict]) -> Again | None:
        """Settle what has its outcome, and leave the rest in `flying`; what the server's trouble is, or None."""
        alone = len(verdicts) == 1
        rest: list[Item] = []
        troubles: list[Again] = []
        for item, verdict in zip(batch, verdicts, strict=True):
            meant = verdict.alone if isinstance(verdict, Smaller) and alone else verdict
            outcome = item.outcome or self._outcome(item, meant)
            if outcome is None:
                rest.append(item)
            elif item.outcome is None:  # else it was given up meanwhile
                self.settle(item, outcome)
            if isinstance(meant, Again) and not isinstance(outcome, Rejected):
                troubles.append(meant)
        lane.flying = rest
        self.sent_again += len(rest)
        self._tell(lane, troubles, len(rest))
        return max(troubles, key=lambda each: each.after) if troubles else None

    def _outcome(self, item: Item, verdict: Verdict) -> Accepted | NotPublished | None:
        match verdict:
            case Accepted():
                return verdict
            case Refused():
                return Rejected(item.stream, item.event_id, item.event, verdict.problem)
            case Smaller():
                item.maybe = item.maybe or (isinstance(verdict.alone, Again) and verdict.alone.unknown)
            case Again():
                item.maybe = item.maybe or verdict.unknown
                item.bugs += verdict.bug
                if item.bugs >= BUGS:
                    problem = {"status": 500, "title": "Internal error", "detail": verdict.why}
                    return Rejected(item.stream, item.event_id, item.event, problem)
        return None

    def _tell(self, lane: Lane, troubles: Sequence[Again], waiting: int) -> None:
        self.trouble = troubles[0].why if troubles else ""
        if self.trouble and not lane.trouble:
            log.warning("events wait to be published", stream=lane.stream, why=self.trouble, events=waiting)
        elif lane.trouble and not self.trouble:
            log.info("events are published again", stream=lane.stream)
        lane.trouble = self.trouble

    # Pauses ---------------------------------------------------------------------------------------------------------

    async def _pause(self, lane: Lane, again: Again, failures: int) -> None:
        """Wait until it is worth trying again, giving up meanwhile whatever has waited long enough."""
        seconds = self._length(again, failures)
        self._give_up(lane, again.why)
        if self.hurry.is_set():
            await anyio.sleep(min(seconds, HURRIED))
        else:
            with anyio.move_on_after(seconds):
                await self._until_hurried(lane, again.why)
        self._give_up(lane, again.why)

    def _length(self, again: Again, failures: int) -> float:
        own = min(self.pace.first_pause * 2.0 ** min(failures, 30), self.pace.longest_pause)
        # Never less than half of our own pause or than what was asked for, and never all clients at the same time.
        own *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        asked = min(again.after, LONGEST_ASKED) * random.uniform(1.0, 1.1)  # noqa: S311 - no secret
        return max(own, asked)

    async def _until_hurried(self, lane: Lane, why: str) -> None:
        """Give up each event when its time has come; returns when nothing is left, or the publisher is being left."""
        while (waiting := lane.items()) and not self.hurry.is_set():
            seconds = math.inf
            if self.pace.give_up_after is not None:
                first = min(item.since for item in waiting) + self.pace.give_up_after
                seconds = max(0.0, first - anyio.current_time())
            with anyio.move_on_after(seconds):
                await self.hurry.wait()
            self._give_up(lane, why)

    async def _give_up_meanwhile(self, lane: Lane, request: anyio.CancelScope) -> None:
        """Give up events while they are under way; the request goes on for the others, and ends if there are none."""
        after = self.pace.give_up_after
        if after is None:
            return
        while True:
            await anyio.sleep_until(lane.flying[0].since + after)
            now = anyio.current_time()
            late = [item for item in lane.flying if now >= item.since + after]
            if len(late) == len(lane.flying):
                request.cancel()
                return
            for item in late:
                item.maybe = True
            self._give_up(lane, self._too_late())

    def _too_late(self) -> str:
        return f"no answer within {self.pace.give_up_after:g} s"

    def _give_up(self, lane: Lane, why: str) -> None:
        after = self.pace.give_up_after
        if after is None:
            return
        now = anyio.current_time()
        for item in lane.drop(lambda item: now >= item.since + after):
            self.settle(item, GaveUp(item.stream, item.event_id, item.event, why, outcome_unknown=item.maybe))


def _too_much(verdicts: Sequence[Verdict]) -> bool:
    return len(verdicts) > 1 and isinstance(verdicts[0], Smaller)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
