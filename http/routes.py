"""Pages and calls of a system's own, served beside Penstock's.

    @routes(system)
    def shop(running: RunningSystem) -> Blueprint:
        made = Blueprint("shop", __name__)

        @made.post("/order")
        async def order() -> TrioResponse:
            return await accept(running, "order-events", await event_of(OrderPlaced))

        return made

What holds for Penstock's own holds for them: limits of size and time, problem details for every error, security
headers, the record of each request where the system keeps one, and an orderly end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from attrs import frozen
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from ..actors.event import Envelope, event_type_of
from ..actors.system import System
from .asking import json_object, query
from .idempotency import event_id_of_request, note_what_is_asked, refuse_another
from .incoming import read_values, traceparent_of
from .ingest import publish_one
from .origin import refuse_other_sites
from .problems import Problem
from .replies import json_reply
from .running import RunningSystem

__all__ = [
    "Blueprint",
    "Problem",
    "RunningSystem",
    "TrioResponse",
    "accept",
    "event_of",
    "json_reply",
    "routes",
    "routes_of",
]

E = TypeVar("E")

MakeRoutes = Callable[[RunningSystem], Blueprint]


@frozen
class _Routes:
    make: MakeRoutes


def routes(system: System) -> Callable[[MakeRoutes], MakeRoutes]:
    """Have the blueprint that the decorated function makes served wherever `system` runs; any number of them.

    It is called once, with the running system, before the front end listens. `RunningSystem.client` is the link to
    Redis, `RunningSystem.connection` a connection to the database.
    """

    def register(make: MakeRoutes) -> MakeRoutes:
        system.parts.append(_Routes(make))
        return make

    return register


def routes_of(running: RunningSystem) -> Iterator[Blueprint]:
    """The blueprints of the running system's own."""
    for part in running.system.parts:
        if isinstance(part, _Routes):
            yield part.make(running)


async def event_of(cls: type[E]) -> E:
    """The event of class `cls` that the request describes: by its body, a JSON object, or without one by its query.

    Members, or parameters, have the names of the event's JSON (``orderId``). Those that it does not have are ignored.
    A parameter is a text, and read as a number, or as ``true`` and ``false``, where the attribute is one.

    Raises:
        Problem: 4xx, which says what is wrong with which member.
    """
    declared = event_type_of(cls)
    values = await json_object() or declared.read_texts(query())
    made: E = read_values(values, declared)
    note_what_is_asked(values)
    return made


async def accept(running: RunningSystem, stream: str, event: object) -> TrioResponse:
    """Publish an event, an object of an event class or an `Envelope`, and answer as ``POST …/events`` does.

    202 with ``{"eventId", "entryId", "durable"}`` once it is durable. With a header ``Idempotency-Key`` (a UUID is the
    event's id itself) the same request sent again is the same event, and another one under that key is refused. As it
    changes something, HEAD is refused, and so is a page of another origin, also where the route takes GET.

    Raises:
        KeyError: no stream of that key is declared.
        Problem: 400, 403, 405, 422, 502 or 503.
    """
    if request.method == "HEAD":
        detail = f"HEAD would change something at {request.path}, and changes nothing."
        raise Problem(405, "method-not-allowed", "Method Not Allowed", detail)
    await refuse_other_sites(always=True)
    declared = running.system.streams[stream]
    if not isinstance(event, Envelope):
        event_id = event_id_of_request()
        given: dict[str, Any] = {} if event_id is None else {"event_id": event_id}
        event = event_type_of(type(event)).envelope(
            event, traceparent=traceparent_of(request.headers.get("traceparent")), **given
        )
        if event_id is not None:
            await refuse_another(running, declared, event_id)
    return await publish_one(running, declared, event)
