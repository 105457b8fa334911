"""The load of a run: clients that send numbered events over HTTP until each is accepted, and keep book of it."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from attrs import define, field
from system_book import Sent

__all__ = ["Client", "Load"]

_PLANS = {
    "ok": 8738,
    "chain:ok": 1200,
    "chain:retry-1": 6,
    "chain:permanent": 3,
    "retry-1": 25,
    "retry-2": 8,
    "permanent": 12,
    "fatal": 6,
    "slow": 2,
}
"""Shares of ten thousand. Few enough of them fail that most batches are handled at once, as in life."""

KEYS = 12
"""Keys of a client. Nobody else uses them, so their order is the order in which it sends."""

_PATIENCE = 15.0
"""Seconds that a client waits for an answer."""


class _NotAccepted(Exception):
    """Send it again. `unknown`: it may have been taken."""

    def __init__(self, reason: str, *, unknown: bool) -> None:
        super().__init__(reason)
        self.unknown = unknown


@define(eq=False)
class Load:
    """What the clients share.

    Attributes:
        ports: the HTTP port of each process, by its name; a process that is replaced has a new one.
        rate: events a second, of all clients.
        limit: events that are enough, once the faults are over.
        held: the handlers are too far behind: nothing new is sent.
        took: seconds of each POST that was answered, whatever the answer.
        answers: how often each kind of answer came.
        durable: how many events were accepted into which place.
        refused: when (seconds since the start), by which process, and why a request was refused as a whole.
        wrong: what no client should ever see.
    """

    seed: int
    ports: dict[str, int]
    rate: float
    limit: int
    started: float = field(factory=time.monotonic)
    sent: dict[str, Sent] = field(factory=dict)
    took: list[float] = field(factory=list)
    answers: dict[str, int] = field(factory=dict)
    durable: dict[str, int] = field(factory=dict)
    refused: list[tuple[float, str, str]] = field(factory=list)
    wrong: list[str] = field(factory=list)
    stopping: threading.Event = field(factory=threading.Event)
    accepted: int = 0
    held: bool = False
    lock: threading.Lock = field(factory=threading.Lock)
    _begun: float | None = None
    _threads: list[threading.Thread] = field(factory=list)

    @property
    def time(self) -> float:
        return time.monotonic() - self.started

    def start(self, clients: int) -> None:
        self._begun = time.monotonic()
        for number in range(clients):
            client = Client(self, number, random.Random(f"{self.seed}/client-{number}"))
            self._threads.append(threading.Thread(target=client.run, name=f"client-{number}", daemon=True))
            self._threads[-1].start()

    def stop(self, within: float) -> bool:
        """Let them finish what they have begun; whether they did."""
        self.stopping.set()
        until = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def is_full(self) -> bool:
        return self.accepted >= self.limit

    def wait_turn(self) -> bool:
        """Block while we are ahead of the rate; False when it is over."""
        assert self._begun is not None
        while not self.stopping.is_set():
            if not self.held and len(self.sent) <= self.rate * (time.monotonic() - self._begun):
                return True
            self.stopping.wait(0.02)
        return False

    def count(self, answer: str) -> None:
        with self.lock:
            self.answers[answer] = self.answers.get(answer, 0) + 1


@define(eq=False)
class Client:
    """One that sends batches and single events, each until it is accepted, to a process that it prefers."""

    load: Load
    number: int
    rng: random.Random
    _numbers: dict[str, int] = field(factory=dict)
    _home: str = ""
    _connections: dict[int, http.client.HTTPConnection] = field(factory=dict)
    _singles: int = 0

    def run(self) -> None:
        try:
            names = sorted(self.load.ports)
            self._home = names[self.number % len(names)]
            while self.load.wait_turn():
                self._send_some()
        except Exception as error:  # noqa: BLE001 - a client that died must be seen
            self.load.wrong.append(f"client {self.number} died: {error!r}")

    def _send_some(self) -> None:
        size = self.rng.choice([1, 1, 20, 50, 100, 150, 200])
        batch = [self._event() for _ in range(size)]
        # A client may give up on an event that nobody waits for.
        gives_up = size == 1 and batch[0].key is None and self.rng.random() < 0.5
        self._deliver(batch, gives_up=gives_up)
        if self.rng.random() < 0.02 and batch[0].accepted:
            self._deliver_again(batch)

    def _event(self) -> Sent:
        key = f"c{self.number}-k{self.rng.randrange(KEYS)}" if self.rng.random() < 0.85 else None
        place = key or f"c{self.number}"
        number = self._numbers[place] = self._numbers.get(place, 0) + 1
        plan = self.rng.choices(list(_PLANS), list(_PLANS.values()))[0]
        sent = Sent(str(UUID(int=self.rng.getrandbits(128), version=4)), key, number, plan)
        with self.load.lock:
            self.load.sent[sent.event_id] = sent
        return sent

    def _deliver(self, batch: Sequence[Sent], *, gives_up: bool = False) -> None:
        left, failures = list(batch), 0
        while left:
            name = self._process(failures)
            try:
                left = self._post(name, left)
                failures = 0 if not left else failures + 1
            except _NotAccepted as error:
                failures += 1
                for each in left:
                    each.unknown |= error.unknown
                    each.diary.append(f"{self.load.time:.2f} s {name}: {error}")
                if gives_up:
                    return
                time.sleep(min(1.0, 0.05 * 2 ** min(failures, 5)))
            if failures > 400 or (self.load.stopping.is_set() and failures > 60):
                self.load.wrong.append(f"client {self.number} gave up at last: {left[0].event_id} {left[0].diary[-2:]}")
                return

    def _deliver_again(self, batch: Sequence[Sent]) -> None:
        """As a client does that has lost the answer; to whichever process."""
        name = self.rng.choice(sorted(self.load.ports))
        try:
            self._post(name, batch)
        except _NotAccepted:
            self.load.count("second copy not taken")
        else:
            self.load.count("second copy taken")

    def _process(self, failures: int) -> str:
        """The preferred one, and another one after some failures there: order is promised through one process."""
        names = sorted(self.load.ports)
        if failures and failures % 8 == 0 and len(names) > 1:
            self._home = self.rng.choice([name for name in names if name != self._home])
        elif self._home not in names:
            self._home = self.rng.choice(names)
        return self._home

    # One request ----------------------------------------------------------------------------------------------------

    def _post(self, name: str, events: Sequence[Sent]) -> list[Sent]:
        """Those that were not accepted, though the request was."""
        body, kind = self._body(events)
        status, answer = self._request(name, body, kind)
        if status == 503:
            detail = str(answer.get("detail", ""))
            self.load.refused.append((self.load.time, name, detail))
            raise _NotAccepted(f"503: {detail[:120]}", unknown=bool(answer.get("outcomeUnknown", True)))
        if status != 202:
            self.load.wrong.append(f"HTTP {status}: {str(answer)[:300]}")
            raise _NotAccepted(f"HTTP {status}", unknown=True)
        return self._book(name, events, answer)

    def _body(self, events: Sequence[Sent]) -> tuple[bytes, str]:
        items = [_item(each) for each in events]
        if len(events) == 1:
            return json.dumps(items[0]).encode(), "application/json"
        if self.rng.random() < 0.2:
            return json.dumps(items).encode(), "application/json"
        return "\n".join(map(json.dumps, items)).encode(), "application/x-ndjson"

    def _request(self, name: str, body: bytes, kind: str) -> tuple[int, Any]:
        port = self.load.ports.get(name)
        if port is None:
            raise _NotAccepted("the process is gone", unknown=False)
        connection = self._connections.get(port)
        if connection is None:
            connection = self._connections[port] = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        started, sent = time.monotonic(), False
        try:
            if connection.sock is None:
                connection.connect()
            sent = True
            connection.request("POST", "/api/v1/streams/orders/events", body, {"Content-Type": kind})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.load.count(f"no answer: {type(error).__name__}")
            raise _NotAccepted(repr(error), unknown=sent) from error
        with self.load.lock:
            self.load.took.append(time.monotonic() - started)
        self.load.count(f"HTTP {response.status}")
        return response.status, _parsed(response.headers.get_content_type(), text)

    def _book(self, name: str, events: Sequence[Sent], answer: Any) -> list[Sent]:
        results = answer if isinstance(answer, list) else [answer]
        # A result that is an error has the event's place, and not always its id.
        ids = [each.get("eventId") or sent.event_id for each, sent in zip(results, events, strict=False)]
        if len(results) != len(events) or ids != [each.event_id for each in events]:
            self.load.wrong.append(f"results out of order, or not as many as events: {str(results)[:300]}")
            raise _NotAccepted("results do not fit", unknown=True)
        left: list[Sent] = []
        for each, result in zip(events, results, strict=True):
            if "error" in result:
                each.unknown = True
                each.diary.append(f"{self.load.time:.2f} s {name}: {str(result['error'])[:120]}")
                left.append(each)
                continue
            if each.key is not None and any(other.key == each.key for other in left):
                self.load.wrong.append(f"{each.event_id} was accepted, and one before it with the same key was not")
            self._accept(each, name, str(result["durable"]))
        return left

    def _accept(self, sent: Sent, name: str, durable: str) -> None:
        with self.load.lock:
            self.load.accepted += not sent.accepted
            self.load.durable[durable] = self.load.durable.get(durable, 0) + 1
        sent.accepted.append((name, round(self.load.time, 2), durable))


def _item(sent: Sent) -> dict[str, Any]:
    item: dict[str, Any] = {
        "eventType": "ORDER_PLACED",
        "eventId": sent.event_id,
        "data": {"account": sent.key, "number": sent.number, "plan": sent.plan},
    }
    return item if sent.key is None else {**item, "key": sent.key}


def _parsed(kind: str, text: bytes) -> Any:
    if "ndjson" in kind:
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)
