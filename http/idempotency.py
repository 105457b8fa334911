"""``Idempotency-Key``: the name that a client gives its request, so that sending it again is no second one.

The key makes the event's id; what came of the event, the inboxes know. That a key is not given to two requests, Redis
remembers for a day: the second would be taken for the first, and be lost. Where Redis is away it cannot be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import redis.exceptions
import trio
from quart import g, request

from ..actors.system import Stream
from .problems import Problem
from .running import RunningSystem
from .views import shut_gate

__all__ = ["IDEMPOTENCY_KEY", "event_id_of_request", "note_what_is_asked", "refuse_another"]

IDEMPOTENCY_KEY: Final = "Idempotency-Key"

REMEMBERED_FOR: Final = 86_400
"""Seconds for which a key is known. Who sends a request again does so within minutes, or hours."""

_ANSWER_WITHIN: Final = 1.0
"""Seconds that Redis has to say what it knows of a key."""

_KEY_LIMIT: Final = 512
_KEYS: Final = uuid5(NAMESPACE_URL, "urn:penstock:idempotency-key")
_ASKED: Final = "penstock_asked"


def event_id_of_request() -> UUID | None:
    """The event id that the header asks for; None without one. A UUID is the id itself.

    Raises:
        Problem: 400, it cannot be a key, or there are several.
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if not keys:
        return None
    # The draft of the header has it in quotes; most clients leave them out.
    key = keys[0].strip().removeprefix('"').removesuffix('"')
    if len(keys) > 1 or not 0 < len(key) <= _KEY_LIMIT:
        detail = f"{IDEMPOTENCY_KEY} must be given once, with 1 to {_KEY_LIMIT} characters."
        raise Problem(400, "invalid-idempotency-key", "Invalid idempotency key", detail)
    try:
        event_id = UUID(key)
    except ValueError:
        event_id = None
    if event_id is not None and str(event_id) == key.lower():  # UUID() also takes 32 digits of anything
        return event_id
    # Of this path alone: two routes may be sent the same key.
    return uuid5(_KEYS, f"{request.path}\n{key}")


def note_what_is_asked(values: Mapping[str, Any]) -> None:
    """Note what this request says, for `refuse_another`."""
    setattr(g, _ASKED, sha256(json.dumps(values, sort_keys=True).encode()).digest())


async def refuse_another(running: RunningSystem, stream: Stream, event_id: UUID) -> None:
    """Raise a 422 `Problem` if a request that said something else came with this key before.

    Blocks for a round trip to Redis, a second at the most; if it does not answer, nothing is refused.
    """
    asked: bytes | None = getattr(g, _ASKED, None)
    if asked is None or shut_gate(running.gates, "redis") is not None:
        return
    before: bytes | str | None = None
    mark = f"{stream.key}:idempotency:{event_id}"
    with trio.move_on_after(_ANSWER_WITHIN):
        try:
            client = running.client()
            if not await client.set(mark, asked, nx=True, ex=REMEMBERED_FOR):
                before = await client.get(mark)
        except (redis.exceptions.RedisError, RuntimeError):
            return  # it is away, or full: the event may still be taken
    if before not in (None, asked):
        detail = f"This {IDEMPOTENCY_KEY} came with another request; each needs one of its own."
        raise Problem(
            422, "idempotency-key-reused", "Idempotency key reused", detail, members={"eventId": str(event_id)}
        )
