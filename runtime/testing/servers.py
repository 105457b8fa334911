"""Real Redis servers as child processes of a test: one node, or a cluster that loses nodes and moves slots.

For a real clock only: under trio's MockClock a time-out fires while the server is still at work. Everything here blocks
the thread (starting takes a tenth of a second, making a cluster about two), so that it can be used in fixtures of any
scope; nothing here needs a running event loop.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import redis.exceptions
from attrs import define, field

from ..embedded.binaries import valkey_server
from ..redis.slots import SLOTS, slot_of

__all__ = ["LocalCluster", "LocalNode", "free_port"]

_START_LIMIT = 15.0
_CLUSTER_LIMIT = 30.0
_FAILOVER_LIMIT = 7.0
_ATTEMPTS = 4
_PAUSE = 0.02


@define(eq=False)
class LocalNode:
    """One server process on 127.0.0.1.

    Attributes:
        program: the server's program (a ``valkey-server`` or ``redis-server``).
        port: where it listens.
        directory: its working directory; kept over `kill` and `start`.
        arguments: the rest of its command line.
        log: its standard output.
    """

    program: str
    port: int
    directory: Path
    arguments: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers (``LOADING`` counts). Raises AssertionError when it does not."""
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--daemonize", "no"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # the test's own program
                [self.program, *self.arguments, *own], stdout=log, stderr=log, cwd=self.directory
            )
        _until(self._listens, _START_LIMIT, f"{self.program} on port {self.port} does not listen; see {self.log}")

    def kill(self) -> None:
        """``kill -9``, and wait for the end. What it has on disk stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process, self.frozen = None, False

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing, until `thaw`."""
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self.frozen = False

    def admin(self, **options: Any) -> redis.Redis:
        """redis-py's own blocking client on it: a judge that shares no code with what is tested."""
        return redis.Redis(host="127.0.0.1", port=self.port, decode_responses=True, socket_timeout=5, **options)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "the server is not running"  # noqa: S101
        self.process.send_signal(number)

    def _listens(self) -> bool:
        assert self.process is not None  # noqa: S101
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-500:]
            raise AssertionError(f"{self.program} ended with {self.process.returncode}: {tail}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@define(eq=False)
class LocalCluster:
    """A cluster of local processes: `with LocalCluster.make() as cluster:`.

    Attributes:
        nodes: all nodes, the first masters first. Roles change; `master_of` asks the cluster.
        directory: holds the nodes' directories; removed at the end.
        node_timeout: ``cluster-node-timeout`` of a node that is started, in seconds; see `make`.
    """

    nodes: list[LocalNode]
    directory: Path
    password: str | None = None
    node_timeout: float = 1.0
    _removed: bool = field(default=False, init=False)

    @classmethod
    def make(
        cls,
        *,
        masters: int = 3,
        replicas: int = 0,
        program: str | None = None,
        arguments: Sequence[str] = (),
        password: str | None = None,
        node_timeout: float | None = None,
        form: Callable[[LocalCluster], None] | None = None,
    ) -> LocalCluster:
        """Start the nodes and make a cluster of them; returns when every node finds it in order.

        Args:
            masters: number of masters; slots are shared out evenly.
            replicas: replicas of *each* master.
            program: the server's program; None for the embedded Valkey.
            arguments: further command line of every node: a configuration file first, or ``--name value`` pairs.
            password: of the default user on every node.
            node_timeout: seconds after which a silent node is given up; None for 1.0 where there are replicas, which
                take over then, and else for 15.0: after half of it the nodes make their links again, and what a busy
                machine keeps them from passing on until then is gone.
            form: makes the cluster instead of this class, once all nodes run (``compose``'s own entry program, say).
        """
        directory = Path(tempfile.mkdtemp(prefix="pc-"))
        cluster = cls([], directory, password, node_timeout or (1.0 if replicas else 15.0))
        try:
            for _ in range(masters * (1 + replicas)):
                cluster.add_node(program=program, arguments=arguments)
            if form is None:
                cluster._form(masters)
            else:
                form(cluster)
            cluster.wait_ok()
        except BaseException:
            cluster.remove()
            raise
        return cluster

    @property
    def url(self) -> str:
        """``redis+cluster://`` with all nodes."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+cluster://{login}" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Kill all nodes and delete their data."""
        for node in self.nodes:
            node.kill()
        if not self._removed:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._removed = True

    def add_node(self, *, program: str | None = None, arguments: Sequence[str] = ()) -> LocalNode:
        """Start one more node, which knows no other yet (`meet` introduces it)."""
        port = free_port(bus=True)
        directory = self.directory / str(port)
        directory.mkdir()
        own = ["--cluster-enabled", "yes"]
        if not any("node-timeout" in word for word in arguments) and not any(w.endswith(".conf") for w in arguments):
            own += ["--cluster-node-timeout", _milliseconds(self.node_timeout), "--appendonly", "yes", "--save", ""]
            own += ["--repl-diskless-sync-delay", "0"]
        if self.password is not None:
            own += ["--requirepass", self.password, "--masterauth", self.password]
        node = LocalNode(program or str(valkey_server()), port, directory, [*arguments, *own])
        self.nodes.append(node)
        node.start()
        return node

    def admin(self, node: LocalNode) -> redis.Redis:
        """redis-py's own blocking client on one node."""
        return node.admin(password=self.password)

    def meet(self, node: LocalNode) -> None:
        """Introduce a node to the others, and wait until all running nodes know each other."""
        other = next(each for each in self.nodes if each is not node and each.running and not each.frozen)
        with self.admin(other) as admin:
            admin.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        _until(self._all_know_each_other, _CLUSTER_LIMIT, "the nodes do not find each other")

    def replicate(self, node: LocalNode, master: LocalNode) -> None:
        """Make a node a replica, and wait until it is in step."""
        master_id = self.id_of(master)
        with self.admin(node) as admin:
            order = ("CLUSTER", "REPLICATE", master_id)
            _until(lambda: _accepted(lambda: admin.execute_command(*order)), 10, "the node cannot become a replica")
            _until(
                lambda: admin.info("replication").get("master_link_status") == "up", 15, "the replica is not in step"
            )

    def id_of(self, node: LocalNode) -> str:
        """The node's id in the cluster."""
        with self.admin(node) as admin:
            return str(admin.execute_command("CLUSTER", "MYID"))

    def master_of(self, key: str | int) -> LocalNode:
        """The running master that owns the slot of a key (or the slot of that number), as masters themselves say.

        Raises LookupError while nobody owns it.
        """
        slot = key if isinstance(key, int) else slot_of(key)
        for node in self._reachable():
            with suppress(redis.exceptions.RedisError), self.admin(node) as admin:
                if _role(admin)[0] != "master":
                    continue
                mine = str(admin.execute_command("CLUSTER", "MYID"))
                for low, high, (_, _, owner, *_), *_ in _slots(admin):
                    if low <= slot <= high and owner == mine:
                        return node
        raise LookupError(f"no running master owns slot {slot}")

    def replicas_of(self, master: LocalNode) -> list[LocalNode]:
        """The running replicas of a master."""
        found = []
        for node in self._reachable():
            with suppress(redis.exceptions.RedisError), self.admin(node) as admin:
                role = _role(admin)
                if role[0] == "slave" and role[2] == master.port:
                    found.append(node)
        return found

    def fail_over(self, replica: LocalNode, how: str | None = None) -> None:
        """CLUSTER FAILOVER (``FORCE``, ``TAKEOVER``) on a replica; returns when all nodes take it for the master.

        Ordered again when nothing came of it: the servers give an attempt up after five seconds, for want of votes say.
        And Redis 7.0 may go back at once to what was before, when the last failover was within the second.
        """
        with self.admin(replica) as admin:
            for attempt in range(_ATTEMPTS):
                try:
                    admin.execute_command("CLUSTER", "FAILOVER", *([how] if how else []))
                except redis.exceptions.ResponseError:
                    # The attempt that was given up has come to something after all.
                    if _role(admin)[0] != "master":
                        raise
                try:
                    _until(lambda: _role(admin)[0] == "master", _FAILOVER_LIMIT, "no failover")
                except AssertionError:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    continue
                self.wait_ok()
                if _role(admin)[0] == "master":
                    return
        raise AssertionError("the replica became a master, and went back every time")

    def migrate_slot(self, slot: int, target: LocalNode, *, pause: float = 0.0) -> None:
        """Move a slot with its keys to another master, as ``redis-cli --cluster reshard`` does.

        `pause` seconds lie between the steps, so that a reader meets ASK and TRYAGAIN.
        """
        source = self.master_of(slot)
        if source is target:
            return
        source_id, target_id = self.id_of(source), self.id_of(target)
        auth = ["AUTH", self.password] if self.password else []
        with self.admin(source) as here, self.admin(target) as there:
            there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            time.sleep(pause)
            while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *auth, "KEYS", *keys)
                time.sleep(pause)
            for admin in (there, here):
                admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        for node in self._reachable():
            if node not in (source, target):
                with suppress(redis.exceptions.RedisError), self.admin(node) as admin:
                    admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    @contextmanager
    def giving_up_after(self, seconds: float) -> Iterator[None]:
        """Have the nodes that run give a silent one up after so many seconds, and as before at the end.

        For the time in which a failover is wanted: at other times nobody is to be given up for a busy machine's sake.
        """
        self._set_node_timeout(seconds)
        try:
            yield
        finally:
            self._set_node_timeout(self.node_timeout)

    def _set_node_timeout(self, seconds: float) -> None:
        for node in self._reachable():
            with self.admin(node) as admin:
                admin.config_set("cluster-node-timeout", _milliseconds(seconds))

    def wait_ok(self, *, within: float = _CLUSTER_LIMIT) -> None:
        """Wait until every running node says ``cluster_state:ok`` and they all agree on who owns what.

        Raises AssertionError with what each of them says, if that does not happen within so many seconds.
        """
        try:
            _until(self._is_ok, within, "the cluster is not in order")
        except AssertionError as error:
            error.add_note("\n\n".join(map(self._told_by, self.nodes)))
            raise

    def _told_by(self, node: LocalNode) -> str:
        name = f"{node.port}{'' if node.running else ' (not running)'}{' (frozen)' if node.frozen else ''}"
        if node not in self._reachable():
            return name
        try:
            with self.admin(node) as admin:
                state, nodes = (str(admin.execute_command("CLUSTER", word)) for word in ("INFO", "NODES"))
        except redis.exceptions.RedisError as error:
            return f"{name}: {error!r}"
        return f"{name}: {state.splitlines()[0]}\n{nodes.strip()}"

    def _form(self, masters: int) -> None:
        first, *others = self.nodes
        with self.admin(first) as admin:
            for node in others:
                admin.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for epoch, node in enumerate(self.nodes[:masters], 1):
            with self.admin(node) as admin:
                low, high = (epoch - 1) * SLOTS // masters, epoch * SLOTS // masters - 1
                admin.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                with suppress(redis.exceptions.ResponseError):
                    admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        _until(self._all_know_each_other, _CLUSTER_LIMIT, "the nodes do not find each other")
        for number, node in enumerate(self.nodes[masters:]):
            self.replicate(node, self.nodes[number % masters])

    def _reachable(self) -> list[LocalNode]:
        return [node for node in self.nodes if node.running and not node.frozen]

    def _all_know_each_other(self) -> bool:
        reachable = self._reachable()
        ports = {node.port for node in reachable}
        for node in reachable:
            with self.admin(node) as admin:
                lines = str(admin.execute_command("CLUSTER", "NODES"))
            known = [line.split() for line in lines.splitlines()]
            usable = {int(row[1].partition("@")[0].rpartition(":")[2]) for row in known if _is_usable(row[2])}
            if not ports <= usable:
                return False
        return True

    def _is_ok(self) -> bool:
        views = set()
        for node in self._reachable():
            try:
                with self.admin(node) as admin:
                    if admin.info("persistence").get("loading"):
                        return False
                    if "cluster_state:ok" not in str(admin.execute_command("CLUSTER", "INFO")):
                        return False
                    views.add(tuple(sorted((low, high, where[2]) for low, high, where, *_ in _slots(admin))))
            except redis.exceptions.RedisError:
                return False
        return len(views) == 1


def free_port(*, bus: bool = False) -> int:
    """A TCP port on 127.0.0.1 that is free now; with `bus`, that of a cluster bus (10000 above it) is free, too.

    No other process that asks here gets the same one while this process lives: the port of a node that is down for a
    while must not go to a node of another cluster.
    """
    for _ in range(200):
        # All of them below the range that the kernel gives to clients (32768 and up), the buses too; and no port of one
        # kind is a bus of the other.
        port = random.randint(10_500, 19_999) if bus else random.randint(30_000, 32_700)  # noqa: S311
        if _is_free(port) and (not bus or _is_free(port + 10_000)) and _is_reserved(port):
            return port
    raise AssertionError("no free port")


def _is_reserved(port: int) -> bool:
    """Whether this process got the port's lock, which it then keeps until it ends."""
    directory = Path(tempfile.gettempdir()) / f"penstock-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    lock = os.open(directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    return True  # the descriptor stays open


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _is_usable(flags: str) -> bool:
    return not any(flag in flags for flag in ("handshake", "noaddr", "fail"))


def _accepted(command: Callable[[], Any]) -> bool:
    """Whether the server took the command (a node that was met a moment ago is not known everywhere yet)."""
    try:
        command()
    except redis.exceptions.ResponseError:
        return False
    return True


def _slots(admin: redis.Redis) -> Iterable[Any]:
    found: Iterable[Any] = admin.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
    return found


def _role(admin: redis.Redis) -> Any:
    return admin.execute_command("ROLE")  # type: ignore[no-untyped-call]


def _until(condition: Callable[[], bool], limit: float, complaint: str) -> None:
    """Ask again and again: another process has no event to wait for."""
    deadline = time.monotonic() + limit
    while True:
        try:
            if condition():
                return
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"{complaint} (within {limit:g} s)")
        time.sleep(_PAUSE)
