"""The servers and the Penstock processes of a run: what is killed, frozen, cut off and started again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import attrs
import psycopg
import redis
import redis.exceptions
from attrs import define
from chaos_postgres import postgres_servers
from chaos_proxy import Proxy

from penstock.actors.settings import DeliverySettings
from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.testing.servers import LocalNode, free_port

_TESTS = Path(__file__).parents[1]
sys.path += [str(_TESTS / "integration"), str(_TESTS / "compose")]

from installation import Installation, until  # noqa: E402 - a helper of other tests, which are no package
from local_nodes import NAMES, Nodes, local_nodes  # noqa: E402

__all__ = [
    "QUICK",
    "TOPOLOGIES",
    "Cluster",
    "Database",
    "Installation",
    "RedisSide",
    "Single",
    "end_in_order",
    "instance_of",
    "log_findings",
    "member",
]

SYSTEM = f"{Path(__file__).with_name('system_shop.py')}:system"

QUICK: Mapping[str, float] = {
    "handler_timeout": 5.0,
    "reclaim_idle": 8.0,
    "reclaim_every": 2.0,
    "renew_every": 2.0,
    "member_silent": 8.0,
    "lease_ttl": 6.0,
    "lease_renew": 2.0,
    "heartbeat_every": 1.0,
}
"""Settings of `[delivery]` under which what usually takes a minute takes seconds; those that there are."""


@define(eq=False)
class Database:
    """A PostgreSQL whose commits survive ``kill -9``, behind a proxy.

    Attributes:
        server: the process.
        port: its own; `proxy` leads to it.
    """

    server: Any
    port: int
    proxy: Proxy

    @classmethod
    def make(cls) -> Database:
        """Initialise it and start it. Blocks for seconds."""
        port = free_port()
        postgres_servers._PORT = str(port)
        made = cls(postgres_servers.PostgresServer(postgres_servers._directory()), port, Proxy(port))
        made.server.initialize()
        with (made.server.data / "pg_hba.conf").open("a") as access:
            access.write("host all postgres 127.0.0.1/32 trust\n")
        made.start()
        return made

    def start(self) -> None:
        self.server.start(
            synchronous_commit="on", listen_addresses="127.0.0.1", port=str(self.port), max_connections="100"
        )

    def stop(self, how: signal.Signals) -> None:
        """SIGKILL takes the backends, too."""
        if how is signal.SIGKILL:
            self.server.send(signal.SIGKILL)
        self.server.stop(how)

    @property
    def url(self) -> str:
        """As Penstock gets it: through the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres"

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, past the proxy."""
        url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            return connection.execute(cast(Any, statement), values or None).fetchall()

    def remove(self) -> None:
        """End it, and delete its data."""
        self.server.stop(signal.SIGQUIT)
        shutil.rmtree(self.server.directory, ignore_errors=True)


class RedisSide(Protocol):
    """One server, or a cluster."""

    @property
    def nodes(self) -> Sequence[LocalNode]: ...

    @property
    def proxies(self) -> Sequence[Proxy]: ...

    @property
    def url(self) -> str:
        """As Penstock gets it."""
        ...

    def admin(self, node: LocalNode) -> redis.Redis:
        """A blocking client on one node."""
        ...

    def owner(self, key: str) -> LocalNode:
        """The node that has the key."""
        ...

    def wait_ok(self) -> None:
        """Wait until all is served again."""
        ...


@define(eq=False)
class Single:
    """One server behind a proxy; what it acknowledges is on disk."""

    nodes: Sequence[LocalNode]
    proxies: Sequence[Proxy]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxies[0].port}"

    def admin(self, node: LocalNode) -> redis.Redis:
        return node.admin()

    def owner(self, key: str) -> LocalNode:
        return self.nodes[0]

    def wait_ok(self) -> None:
        with self.admin(self.nodes[0]) as admin:
            until(partial(_answers, admin), 30.0, "the server answers")


@define(eq=False)
class Cluster:
    """The cluster of compose/: its configuration, users and entry program."""

    made: Nodes
    proxies: Sequence[Proxy] = ()

    @property
    def nodes(self) -> Sequence[LocalNode]:
        return self.made.nodes

    @property
    def url(self) -> str:
        return self.made.url

    def admin(self, node: LocalNode) -> redis.Redis:
        return self.made.admin(node)

    def owner(self, key: str) -> LocalNode:
        return self.made.master_of(key)

    def wait_ok(self) -> None:
        self.made.wait_ok(within=60.0)


def _answers(admin: redis.Redis) -> bool:
    try:
        return bool(admin.ping()) and not admin.info("persistence")["loading"]
    except redis.exceptions.RedisError:
        return False


@contextmanager
def _single() -> Iterator[RedisSide]:
    with tempfile.TemporaryDirectory(prefix="pc-") as directory:
        arguments = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"]
        node = LocalNode(str(valkey_server()), free_port(), Path(directory), arguments)
        node.start()
        try:
            yield Single([node], [Proxy(node.port)])
        finally:
            node.kill()


@contextmanager
def _cluster(replicas: bool = False) -> Iterator[RedisSide]:
    with local_nodes(str(valkey_server()), names=NAMES if replicas else NAMES[:3]) as nodes:
        for entry in ("redis-cluster", "redis-replicas")[: 1 + replicas]:
            code, said = nodes.run_entry(entry)
            assert code == 0, said
        yield Cluster(nodes)


TOPOLOGIES: Mapping[str, Callable[[], AbstractContextManager[RedisSide]]] = {
    "single": _single,
    "cluster": _cluster,
    "replicas-cluster": partial(_cluster, replicas=True),
}


# Penstock itself -----------------------------------------------------------------------------------------------------


def member(name: str, place: Path, redis_url: str, postgres_url: str) -> Installation:
    """One process with a data directory and a port of its own, not started."""
    directory = place / name
    directory.mkdir()
    known = {each.name for each in attrs.fields(DeliverySettings)}
    quick = {f"PENSTOCK_DELIVERY_{key.upper()}": f"{value:g}" for key, value in QUICK.items() if key in known}
    environment = {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_POSTGRES_URL": postgres_url,
        "PENSTOCK_LOG_FORMAT": "json",
        "PENSTOCK_START_WAIT_FOR_SERVERS": "30",
        "CHAOS_PROCESS": name,
        **quick,
    }
    return Installation(directory, environment=environment, arguments=("run", SYSTEM), port=free_port())


def end_in_order(installation: Installation, limit: float = 60.0) -> str | None:
    """SIGTERM, and wait for the end; what was wrong with it."""
    try:
        code = installation.terminate(limit)
    except subprocess.TimeoutExpired:
        installation.kill()
        return f"had not ended {limit:g} s after SIGTERM, and was killed"
    return None if code == 0 else f"ended with {code} after SIGTERM"


def instance_of(installation: Installation) -> str:
    """The stable part of its consumers' names."""
    return (installation.directory / ".penstock" / "instance").read_text().strip()


EXPECTED = ("PlannedFailure", "Permanent", "planned", "timed out", "took longer", "TooSlow", "nonsense", "no eventType")
"""What the log says of failures that were planned."""

_NEVER = ("child_crashed", "child_stuck", "supervisor_gave_up", "mail_lost")
"""Lifecycle events that no outage and no event's own fault may bring about."""


def log_findings(installation: Installation) -> tuple[list[str], Counter[str]]:
    """What must not be in the logs of a process, of all its runs; and how often each error and warning was told."""
    wrong: list[str] = []
    told: Counter[str] = Counter()
    for number in range(1, installation.runs + 1):
        file = installation.directory / f"log-{number}.txt"
        for line in file.read_text(errors="replace").splitlines():
            found = _finding(line, told)
            if found is not None:
                wrong.append(f"{installation.directory.name} run {number}: {found}")
    return wrong, told


def _finding(line: str, told: Counter[str]) -> str | None:
    try:
        fact = json.loads(line)
    except ValueError:
        return f"no JSON: {line[:300]}" if line.strip() else None
    text = line.lower()
    if fact.get("level") in ("warning", "error", "critical"):
        told[f"{fact['level']}: {fact.get('event', '')}"] += 1
    if "stuck" in text or fact.get("lifecycle") in _NEVER:
        return f"{fact.get('lifecycle', 'stuck')}: {line[:1200]}"
    if ("traceback" in text or "exception" in fact) and not any(word in line for word in EXPECTED):
        return f"traceback: {line[:1500]}"
    return None
