"""docs/examples/back_office.py as its reader runs it: three processes, of which one is killed in the middle of events.

Once on one Redis and once on a cluster of three masters.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from attrs import define
from installation import Installation, until

from penstock.runtime.testing.servers import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ARGUMENTS = ("run", f"{EXAMPLES / 'back_office.py'}:system")
IDLE = 5.0
TIMES = {
    "PENSTOCK_DELIVERY_HANDLER_TIMEOUT": "4.5",
    "PENSTOCK_DELIVERY_RECLAIM_IDLE": f"{IDLE:g}",
    "PENSTOCK_DELIVERY_RECLAIM_EVERY": "1",
}
SLOW = "4"


@define(eq=False)
class Chat:
    """Three servers: the first brings PostgreSQL, and Redis where there is no cluster; the second one is slow."""

    servers: list[Installation]
    cluster: LocalCluster | None

    def send(self, server: Installation, what: str, **body: str) -> None:
        headers = {"Content-Type": "application/json"}
        status, _, answer = server.request("POST", f"/back-office/{what}", json.dumps(body).encode(), headers)
        assert status == 202, answer

    def look(self, server: Installation) -> dict[str, Any]:
        return dict(server.look("/chat"))

    def actions(self) -> list[dict[str, str]]:
        return list(self.servers[0].look("/back-office/actions")["actions"])

    def held_by(self, server: Installation) -> int:
        """How many events it was given and has not acknowledged."""
        instance = (server.directory / ".penstock" / "instance").read_text().strip()
        return sum(pending for name, pending in self._consumers().items() if name.endswith(f":{instance}"))

    def pending(self) -> int:
        return sum(self._consumers().values())

    def _consumers(self) -> dict[str, int]:
        if self.cluster is not None:
            with self.cluster.admin(self.cluster.master_of("FUNSDK")) as admin:
                return _pending(admin)
        socket = self.servers[0].directory / ".penstock" / "valkey" / "valkey.sock"
        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            return _pending(client)


def _pending(client: Any) -> dict[str, int]:
    return {each["name"]: each["pending"] for each in client.xinfo_consumers("FUNSDK", "FUNSDK_GROUP")}


@pytest.fixture(params=["one Redis", "cluster"])
def chat(request: pytest.FixtureRequest, place: Path) -> Iterator[Chat]:
    cluster = LocalCluster.make(masters=3) if request.param == "cluster" else None
    try:
        yield from _three_servers(place, cluster)
    finally:
        if cluster is not None:
            cluster.remove()


def _three_servers(place: Path, cluster: LocalCluster | None) -> Iterator[Chat]:
    home = place / ".penstock"
    urls = {"PENSTOCK_POSTGRES_URL": f"postgresql://penstock@/penstock?host={quote(str(home / 'postgres'))}"}
    own = {"PENSTOCK_REDIS_URL": cluster.url} if cluster is not None else {}
    urls["PENSTOCK_REDIS_URL"] = own.get("PENSTOCK_REDIS_URL", f"unix://{home / 'valkey' / 'valkey.sock'}")
    with tempfile.TemporaryDirectory(prefix="penstock-it-") as directory:
        servers = [Installation(place, environment={"CHAT_SERVER": "chat-1", **TIMES, **own}, arguments=ARGUMENTS)]
        for name, slow in (("chat-2", SLOW), ("chat-3", "0")):
            (Path(directory) / name).mkdir()
            environment = {"CHAT_SERVER": name, "CHAT_SLOW": slow, **TIMES, **urls}
            servers.append(Installation(Path(directory) / name, environment=environment, arguments=ARGUMENTS))
        try:
            servers[0].start()
            with ThreadPoolExecutor(len(servers)) as at_once:
                list(at_once.map(Installation.start, servers[1:]))
            yield Chat(servers, cluster)
        finally:
            with ThreadPoolExecutor(len(servers)) as at_once:
                list(at_once.map(Installation.close, servers[1:]))
            servers[0].close()


def test_one_handles_all_are_told_and_a_server_killed_in_the_middle_costs_nothing(chat: Chat) -> None:
    one, doomed, other = chat.servers
    until(lambda: doomed.request("POST", "/chat/users/ann")[0] == 200, 30.0, "she is in")
    chat.send(one, "ban", userId="ann")
    chat.send(doomed, "notice", text="maintenance at ten")
    chat.send(other, "close-room", room="lobby")
    until(lambda: len(chat.actions()) == 3, 60.0, "all are handled, the slow ones too")
    for server in chat.servers:
        until(lambda server=server: _knows(chat.look(server), 1), 30.0, "it is told")
    assert [chat.look(server)["kicked"] for server in chat.servers] == [[], ["ann"], []]
    assert doomed.request("POST", "/chat/users/ann")[0] == 403

    for number in range(20):
        chat.send(one, "notice", text=f"notice {number}")
    until(lambda: chat.held_by(doomed), 30.0, "it is at work on some of them")
    doomed.kill()
    held = chat.held_by(doomed)
    assert held > 0
    took = until(lambda: len(chat.actions()) >= 23, IDLE + 60.0, "what it had in work is handled by the others")
    print(f"{held} events taken over after {took:.1f} s")
    until(lambda: chat.pending() == 0, 30.0, "nothing is pending")
    actions = chat.actions()
    assert len(actions) == len({each["eventId"] for each in actions}) == 23
    assert Counter(each["subject"] for each in actions if each["subject"].startswith("notice")) == {
        f"notice {number}": 1 for number in range(20)
    }
    for server in (one, other):
        until(lambda server=server: _knows(chat.look(server), 21), 30.0, "it is told of what was taken over, too")

    doomed.start()
    counts = _errors_and_gaps(doomed)
    until(lambda: _knows(chat.look(doomed), 21), 30.0, "it reads what it has missed")
    assert _errors_and_gaps(doomed) == counts


def _errors_and_gaps(server: Installation) -> str:
    """As the actor counts them since its start."""
    note = str(server.child("chat/actors/channels")["note"])
    return note[note.index("errors: ") :]


def _knows(view: dict[str, Any], notices: int) -> bool:
    return view["banned"] == ["ann"] and view["closedRooms"] == ["lobby"] and len(view["notices"]) == notices


def test_what_the_tutorial_shows_is_in_the_program() -> None:
    page, program = (EXAMPLES.parent / "tutorial-back-office.md").read_text(), (EXAMPLES / "back_office.py").read_text()
    performing, listening, *_, testing = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for part in (performing, listening):
        assert _lines(textwrap.indent(part, "    ")) in _lines(program)
    compile(f"async def test():\n{textwrap.indent(testing, '    ')}", "tutorial", "exec")


def _lines(text: str) -> str:
    """Without empty lines, of which a page has others."""
    return re.sub(r"\n\s*\n", "\n", text)
