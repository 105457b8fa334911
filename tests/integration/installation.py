"""An installation of Penstock as an operator has it: a directory, a process, its servers, its HTTP address."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis
from attrs import define, field

from penstock.runtime.testing.servers import free_port

STREAM = "EVENT_STREAM"
PIPELINE = "event-system/actors/EVENT_GROUP@EVENT_STREAM"


class NotYet(AssertionError):
    """An answer of 503, which says to ask again: `until` does, and whoever does not has failed."""


def until(true: Callable[[], Any], limit: float, what: str) -> float:
    """Seconds until `true()` was true; fails the test after `limit` seconds."""
    started = time.monotonic()
    while not _holds(true):
        assert time.monotonic() - started < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


def _holds(true: Callable[[], Any]) -> bool:
    try:
        return bool(true())
    except NotYet:
        return False


def access_event(number: int | str, event_id: str | None = None) -> dict[str, Any]:
    data = {"endpoint": f"/load/{number}", "httpMethod": "GET", "responseStatus": 200, "responseTime": 0.001}
    return {"eventType": "ACCESS", "eventId": event_id or str(uuid4()), "data": data}


@define(eq=False)
class Installation:
    """See the module; `start` and `stop` may be called again and again."""

    directory: Path
    environment: dict[str, str] = field(factory=dict)
    arguments: Sequence[str] = ("run",)
    program: str = field(factory=lambda: PENSTOCK)
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    runs: int = 0

    @property
    def log_file(self) -> Path:
        return self.directory / f"log-{self.runs}.txt"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `penstock` with arguments to its end."""
        return subprocess.run(
            [self.program, *arguments],
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        bind = {"PENSTOCK_HTTP_BIND": f"127.0.0.1:{self.port}"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        # A server that is slow to answer on a busy machine is not one that is not there.
        patient = {"PENSTOCK_START_WAIT_FOR_SERVERS": "60"}
        return {**kept, **bind, **patient, **self.environment}

    def start(self, limit: float = 120.0) -> float:
        """Start it and wait until it is ready; the seconds that it took."""
        self.start_unready()
        return until(self._is_ready, limit, "ready")

    def start_unready(self, limit: float = 120.0) -> float:
        """Start it and wait until it answers, ready or not; the seconds that it took."""
        self.runs += 1
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [self.program, *self.arguments],
                cwd=self.directory,
                env=self._environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return until(lambda: self._status() is not None, limit, "it answers")

    def _is_ready(self) -> bool:
        return self._status() == 200

    def _status(self) -> int | None:
        """Of ``/readyz``; None while nobody answers."""
        assert self.process is not None
        assert self.process.poll() is None, f"penstock ended: {self.log[-1500:]}"
        try:
            return self.get("/readyz")[0]
        except OSError:
            return None

    def terminate(self, limit: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit)

    def kill(self) -> None:
        """kill -9 of penstock itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    # HTTP -----------------------------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        status, headers, body = self.request("GET", path)
        return status, json.loads(body) if "json" in headers.get("content-type", "") else body

    def look(self, path: str) -> Any:
        """What `path` shows; raises NotYet where it cannot be told now."""
        status, shown = self.get(path)
        if status == 503:
            raise NotYet(f"{path}: {shown}")
        assert status == 200, shown
        return shown

    def post(self, events: Any, *, ndjson: bool = False) -> tuple[int, Any]:
        if ndjson:
            body = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in events).encode()
            kind = "application/x-ndjson"
        else:
            body, kind = json.dumps(events).encode(), "application/json"
        status, headers, answer = self.request("POST", f"/api/v1/streams/{STREAM}/events", body, {"Content-Type": kind})
        if "ndjson" in headers.get("content-type", ""):
            return status, [json.loads(line) for line in answer.splitlines()]
        return status, json.loads(answer)

    # The tree -------------------------------------------------------------------------------------------------------

    def child(self, path: str) -> dict[str, Any]:
        """The child at `path`, as `/api/v1/tree` shows it."""
        tree = self.get("/api/v1/tree")[1]
        found = next(each for each in _walk(tree["tree"]) if each["path"] == path)
        return dict(found)

    def gate(self, name: str) -> dict[str, Any]:
        """The gate, as `/readyz` shows it."""
        gates = self.get("/api/v1/tree")[1]["gates"]
        return dict(next(each for each in gates if each["name"] == name))

    def pid(self, server: str) -> int:
        """The process id of an embedded server, as the tree shows it."""
        match = re.search(r"pid (\d+)", self.child(f"event-system/servers/{server}")["note"])
        assert match is not None
        return int(match[1])

    # Servers --------------------------------------------------------------------------------------------------------

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, over a connection of its own."""
        home = self.directory / ".penstock" / "postgres"
        with psycopg.connect(f"host={home} dbname=penstock user=penstock", autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def groups(self) -> list[dict[str, Any]]:
        """XINFO GROUPS of S1's stream, over a connection of its own."""
        with redis.Redis(unix_socket_path=str(self.directory / ".penstock" / "valkey" / "valkey.sock")) as client:
            return list(client.xinfo_groups(STREAM))

    def rows(self, prefix: str = "/load/") -> int:
        return int(self.sql("select count(*) from access_event where endpoint like %s", f"{prefix}%")[0][0])

    def pending(self) -> int:
        """Entries that the group has not been given, or has not acknowledged."""
        return sum(int(group["pending"]) + int(group["lag"] or 0) for group in self.groups())


def _walk(child: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield child
    for each in child.get("children", ()):
        yield from _walk(each)


PENSTOCK = str(Path(sys.executable).with_name("penstock"))

_BETWEEN = 0.05
"""Seconds between two requests of one thread under load."""


@define(eq=False)
class Load:
    """Posts some hundreds of events a second, from a few threads, and keeps the ids of those that got 202."""

    installation: Installation
    threads: int = 3
    size: int = 10
    accepted: set[str] = field(factory=set)
    refused: int = 0
    broken: list[str] = field(factory=list)
    slowest: float = 0.0
    _stop: threading.Event = field(factory=threading.Event)
    _workers: list[threading.Thread] = field(factory=list)

    @contextmanager
    def running(self) -> Iterator[Load]:
        self._workers = [threading.Thread(target=self._work) for _ in range(self.threads)]
        for worker in self._workers:
            worker.start()
        try:
            yield self
        finally:
            self._stop.set()
            for worker in self._workers:
                worker.join(40)

    def _work(self) -> None:
        while not self._stop.is_set():
            events = [access_event(uuid4().hex) for _ in range(self.size)]
            started = time.monotonic()
            try:
                status, results = self.installation.post(events)
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                self._stop.wait(_BETWEEN)
                continue
            self.slowest = max(self.slowest, time.monotonic() - started)
            if status == 202:
                self.accepted.update(each["eventId"] for each in results if "error" not in each)
            else:
                self.refused += 1
                assert status == 503, results
            self._stop.wait(_BETWEEN)

    def missing(self) -> set[str]:
        """Accepted events that are no rows."""
        rows = {str(row[0]) for row in self.installation.sql("select event_id from access_event")}
        return self.accepted - rows
