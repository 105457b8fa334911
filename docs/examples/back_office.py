"""The back office of a game's chat, and N chat servers. `penstock run docs/examples/back_office.py:system`

    POST /back-office/ban         ─┐                                ┌─> one server: a row in PostgreSQL
    POST /back-office/notice       ├─> FUNSDK ──> FUNSDK_GROUP ─────┤
    POST /back-office/close-room  ─┘                                └─> chat:back-office ──> every server: GET /chat

Each server is a process of this program. CHAT_SERVER is its name, CHAT_SLOW the seconds that it takes for an event.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

from penstock.actors.channels import Broadcast, Gap
from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.http.routes import (
    Blueprint,
    Problem,
    RunningSystem,
    TrioResponse,
    accept,
    event_of,
    json_reply,
    routes,
)

if TYPE_CHECKING:
    from penstock.actors.testing import MemoryStore

STREAM, GROUP, CHANNEL = "FUNSDK", "FUNSDK_GROUP", "chat:back-office"


@event("USER_BANNED")
@frozen
class UserBanned:
    user_id: str


@event("NOTICE_SENT")
@frozen
class NoticeSent:
    text: str


@event("ROOM_CLOSED")
@frozen
class RoomClosed:
    room: str


@define(eq=False)
class ChatServer:
    """What one server has in memory: its users, and what the back office has told all servers.

    Attributes:
        name: of the server.
        slow: seconds that it takes to handle an event of the back office.
        users: who is connected to it.
        kicked: who was, and was banned.
        banned: users.
        notices: texts by event id: what is heard twice is shown once.
        closed: rooms.
        informed: whether it has read what was done before it came.
    """

    name: str
    slow: float = 0.0
    users: set[str] = field(factory=set)
    kicked: list[str] = field(factory=list)
    banned: set[str] = field(factory=set)
    notices: dict[str, str] = field(factory=dict)
    closed: set[str] = field(factory=set)
    informed: bool = False

    def hear(self, event_id: str, kind: str, subject: str) -> None:
        """What the back office has done, here or on another server."""
        match kind:
            case "ban":
                self.banned.add(subject)
                if subject in self.users:
                    self.users.remove(subject)
                    self.kicked.append(subject)
            case "notice":
                self.notices[event_id] = subject
            case "close-room":
                self.closed.add(subject)

    def view(self) -> dict[str, object]:
        return {
            "server": self.name,
            "users": sorted(self.users),
            "kicked": self.kicked,
            "banned": sorted(self.banned),
            "notices": list(self.notices.values()),
            "closedRooms": sorted(self.closed),
        }


def chat(server: ChatServer) -> System:
    """The system of which `server` is one process."""
    system = System("chat", migrations=Path(__file__).parent / "back_office_migrations")
    _one_handles(system, server)
    _all_are_told(system, server)
    routes(system)(lambda running: _pages(running, server))
    return system


# One server handles each event


def _one_handles(system: System, server: ChatServer) -> None:
    funsdk = system.stream(STREAM, events=[UserBanned, NoticeSent, RoomClosed])
    # Handlers that take seconds do not share a transaction.
    funsdk.group(GROUP, batch=1)

    async def perform(context: Context, kind: str, subject: str) -> None:
        await context.connection.execute(
            "insert into back_office_action (event_id, kind, subject, server) values (%s, %s, %s, %s)",
            (context.event_id, kind, subject, server.name),
        )
        await trio.sleep(server.slow)
        context.broadcast(CHANNEL, {"eventId": str(context.event_id), "kind": kind, "subject": subject})

    @funsdk.on(UserBanned, group=GROUP)
    async def ban(event: UserBanned, context: Context) -> None:
        await perform(context, "ban", event.user_id)

    @funsdk.on(NoticeSent, group=GROUP)
    async def send_notice(event: NoticeSent, context: Context) -> None:
        await perform(context, "notice", event.text)

    @funsdk.on(RoomClosed, group=GROUP)
    async def close_room(event: RoomClosed, context: Context) -> None:
        await perform(context, "close-room", event.room)


# Every server is told


def _all_are_told(system: System, server: ChatServer) -> None:
    channel = system.channel(CHANNEL)

    @channel.on
    async def hear(message: Broadcast) -> None:
        server.hear(message.data["eventId"], message.data["kind"], message.data["subject"])

    @channel.on_gap
    async def read_again(gap: Gap) -> None:
        """At the start, and whenever messages may have been missed."""
        async with gap.connection() as connection:
            cursor = await connection.execute("select event_id, kind, subject from back_office_action order by id")
            for event_id, kind, subject in await cursor.fetchall():
                server.hear(str(event_id), kind, subject)
        server.informed = True


# Pages


def _pages(running: RunningSystem, server: ChatServer) -> Blueprint:
    made = Blueprint("chat", __name__)

    @made.post("/back-office/ban")
    async def ban() -> TrioResponse:
        return await accept(running, STREAM, await event_of(UserBanned))

    @made.post("/back-office/notice")
    async def send_notice() -> TrioResponse:
        return await accept(running, STREAM, await event_of(NoticeSent))

    @made.post("/back-office/close-room")
    async def close_room() -> TrioResponse:
        return await accept(running, STREAM, await event_of(RoomClosed))

    @made.get("/back-office/actions")
    async def actions() -> TrioResponse:
        async with running.connection() as connection:
            cursor = await connection.execute(
                "select event_id, kind, subject, server from back_office_action order by id"
            )
            names = ("eventId", "kind", "subject", "server")
            rows = [dict(zip(names, map(str, row), strict=True)) for row in await cursor.fetchall()]
        return json_reply({"actions": rows})

    @made.get("/chat")
    async def look() -> TrioResponse:
        return json_reply(server.view())

    @made.post("/chat/users/<user>")
    async def connect(user: str) -> TrioResponse:
        if not server.informed:
            raise Problem(503, "not-ready", "Not ready", "The server does not know yet who is banned; come again.")
        if user in server.banned:
            raise Problem(403, "banned", "Banned", f"{user} is banned.")
        server.users.add(user)
        return json_reply(server.view())

    return made


system = chat(ChatServer(os.environ.get("CHAT_SERVER", f"chat-{os.getpid()}"), float(os.environ.get("CHAT_SLOW", "0"))))


# In memory: no SQL is run there. `penstock simulate docs/examples/back_office.py:system`


def keep_actions(store: MemoryStore) -> None:
    def rows(_: object) -> list[tuple[object, ...]]:
        return [effect.values for effect in store.effects if effect.statement.startswith("insert into back_office")]

    store.answer("select event_id, kind, subject from", lambda values: [row[:3] for row in rows(values)])
    store.answer("select event_id, kind, subject, server from", rows)


simulation_begins = keep_actions
