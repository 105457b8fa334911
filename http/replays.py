"""Replays over HTTP: ``/api/v1/replays``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.replay import ReplayRefused, Replays
from ..actors.replay_range import id_at
from ..actors.replay_table import Replay
from ..runtime.masking import mask_text
from .asking import asker, asking, given_body, given_query, wrong
from .problems import Problem, sentence
from .replies import json_reply
from .running import RunningSystem
from .views import iso, shut_gate

__all__ = ["replays"]

ANSWER_WITHIN = 15.0
"""Seconds for an answer; counting a long range takes some."""

PAGE_LIMIT = 1_000
"""Orders in one answer at the most."""

SLOWEST, FASTEST = 0.001, 1_000_000.0
"""Events a second."""


def replays(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("replays", __name__, url_prefix="/api/v1/replays")

    @routes.get("")
    async def list_replays() -> TrioResponse:
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 20
        given.end()
        with _desk(deployment) as desk:
            found = await desk.recent(limit)
        return json_reply({"replays": [_replay_json(each) for each in found]})

    @routes.post("")
    async def order_replay() -> TrioResponse:
        given = await given_body()
        stream, first, last = given.text("stream"), given.text("from"), given.text("to")
        facts = {"group": given.text("group"), "into": given.text("into")}
        rate, original_pace = given.real("rate", SLOWEST, FASTEST), given.truth("originalPace")
        dry_run = given.truth("dryRun")
        given.end()
        if stream is None or first is None:
            wrong("stream and from: are required.")
        if stream not in deployment.system.streams:
            known = sorted(deployment.system.streams)
            detail = f"There is no stream {stream!r}; the streams are: {', '.join(known) or 'none'}."
            raise Problem(404, "unknown-stream", "Unknown stream", detail, members={"streams": known})
        _check_redis(deployment)
        with _desk(deployment) as desk:
            replay = await desk.order(
                stream,
                _place(deployment, "from", first, last=False),
                None if last is None else _place(deployment, "to", last, last=True),
                rate=rate,
                original_pace=original_pace,
                by=asker(),
                dry_run=dry_run,
                **facts,
            )
        if dry_run:
            return json_reply({"dryRun": True, **_replay_json(replay)})
        location = f"/api/v1/replays/{replay.id}"
        return json_reply({"dryRun": False, **_replay_json(replay)}, 202, headers={"Location": location})

    @routes.get("/<uuid:number>")
    async def get_replay(number: UUID) -> TrioResponse:
        with _desk(deployment) as desk:
            return json_reply(_replay_json(await _known(desk, number)))

    @routes.post("/<uuid:number>/cancel")
    async def cancel_replay(number: UUID) -> TrioResponse:
        with _desk(deployment) as desk:
            cancelled = await desk.cancel(number)
            replay = await _known(desk, number)
        if not cancelled:
            detail = f"The replay {number} is {replay.state.value} already."
            raise Problem(409, "replay-settled", "The replay is over", detail)
        return json_reply(_replay_json(replay))

    return routes


async def _known(desk: Replays, number: UUID) -> Replay:
    replay = await desk.get(number)
    if replay is None:
        raise Problem(404, "replay-not-found", "Replay not found", f"There is no replay {number}.")
    return replay


def _place(deployment: RunningSystem, name: str, text: str, *, last: bool) -> str:
    try:
        return id_at(text, deployment.settings.zone_info, last=last)
    except ValueError as error:
        wrong(f"{name}: {error}.")


@contextmanager
def _desk(deployment: RunningSystem) -> Iterator[Replays]:
    try:
        with asking(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep:
            yield upkeep.replays
    except ReplayRefused as error:
        raise Problem(422, "replay-refused", "No such replay", sentence(error)) from None


def _check_redis(deployment: RunningSystem) -> None:
    """The range is counted when it is ordered, which needs Redis; an order in work waits for it by itself."""
    gate = shut_gate(deployment.gates, "redis")
    if gate is not None:
        detail = f"Redis is away since {iso(gate.since)}: {mask_text(gate.cause)}."
        raise Problem(503, "redis-away", "Redis is away", detail, headers={"Retry-After": "1"})


def _replay_json(replay: Replay) -> dict[str, Any]:
    return {
        "id": str(replay.id),
        "state": replay.state.value,
        "stream": replay.stream,
        "from": replay.from_id,
        "to": replay.to_id,
        "group": replay.consumer_group,
        "into": replay.target_stream,
        "rate": replay.rate,
        "originalPace": replay.original_pace,
        "total": replay.total,
        "replayed": replay.replayed,
        "orderedBy": replay.ordered_by,
        "orderedAt": None if replay.ordered_at is None else iso(replay.ordered_at),
        "finishedAt": None if replay.finished_at is None else iso(replay.finished_at),
        "error": None if replay.error is None else mask_text(replay.error),
    }
