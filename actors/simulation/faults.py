"""What can go wrong in a simulated world, one function a fault: it happens at once, and passes by itself.

Each is called between two steps of the tasks of some process, must not block, and says what it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import psycopg
import trio

from ...runtime.redis.slots import slot_of
from ...runtime.testing.redis import InProcessRedis
from ...runtime.testing.redis_cluster import InProcessCluster

if TYPE_CHECKING:
    from .world import Node, World

__all__ = ["FAULTS", "Fault", "draw"]

Fault = Callable[["World", "Node"], str]
"""Gets the world and the node whose step was the last; returns what it did, empty if it could do nothing."""

REFUSALS: Final = (
    "LOADING Redis is loading the dataset in memory",
    "CLUSTERDOWN The cluster is down",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "MOVED 866 127.0.0.1:7002",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "NOAUTH Authentication required.",
    "NOPERM User default has no permissions to run the command",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "ERR max number of clients reached",
)

WAKE_UPS: Final = ("unblocked-failover", "unblocked-by-client")

STATES: Final = ("loading", "read-only", "out-of-memory", "disk-error", "no-replicas", "cluster-down", "busy-script")

MOST_NODES: Final = 4

NOT_AGAIN: Final = 60.0
"""Seconds within which no group is destroyed a second time."""

COMMANDS: Final = ("XADD", "XREADGROUP", "XACK", "XINFO GROUPS", "XGROUP CREATE", "EVAL", "EVALSHA", "XREAD", "*")

QUEUE_COMMANDS: Final = ("LPUSH", "BLMOVE", "LRANGE", "EVALSHA")
"""That are refused, or cut off, too, where the system has queues."""


def draw(world: World, node: Node) -> str:
    """Let something go wrong; what, for the story."""
    chance = world.chance
    faults = [*FAULTS, (lose_outside, 6)] if world.system.gates else FAULTS
    while True:
        fault = chance.choices([each for each, _ in faults], [weight for _, weight in faults])[0]
        if told := fault(world, node):
            return told


def _seconds(world: World, *choices: float) -> float:
    return world.chance.choice(choices)


def _victim(world: World) -> InProcessRedis:
    """The Redis server that it happens to; mostly one that matters."""
    if isinstance(world.redis, InProcessRedis):
        return world.redis
    if world.chance.random() < 0.7:
        return world.redis.master_of(world.chance.choice(world.keys))
    return world.chance.choice(world.redis.nodes)


def _commands(world: World, *commands: str) -> tuple[str, ...]:
    return (*commands, *QUEUE_COMMANDS) if world.system.queues else commands


# Processes -----------------------------------------------------------------------------------------------------------


def kill(world: World, node: Node) -> str:
    """``kill -9``; the same installation is started again later."""
    assert node.process is not None  # noqa: S101 - it has made a step
    if node.process.killed:
        return ""
    node.process.kill()
    pause = _seconds(world, 0.0, 0.5, 5.0, 30.0)
    world.simulation.spawn(world.restart, node, pause)
    return f"{node.name} is killed, and started again {pause:g} s later"


def kill_for_good(world: World, node: Node) -> str:
    """``kill -9``, and nobody starts it again: the others must take over what it had."""
    assert node.process is not None  # noqa: S101 - it has made a step
    if node.process.killed or all(each is node or each.gone for each in world.nodes):
        return ""
    node.gone = True
    node.process.kill()
    return f"{node.name} is killed, and never comes back"


def join(world: World, node: Node) -> str:
    """Another process of the system begins, under a name of its own."""
    if len(world.nodes) >= MOST_NODES:
        return ""
    return f"{world.add_node().name} joins"


def stop(world: World, node: Node) -> str:
    """SIGTERM: an ordered stop."""
    if node.deployment is None or not node.is_running:
        return ""
    node.deployment.tree.stop("it is told to")
    pause = _seconds(world, 0.0, 1.0, 20.0)
    world.simulation.spawn(world.restart, node, pause)
    return f"{node.name} is stopped in order, and started again {pause:g} s later"


def freeze(world: World, node: Node) -> str:
    """SIGSTOP, and SIGCONT later: what others have done meanwhile, it does not know."""
    process = node.process
    if process is None or not node.is_running:
        return ""
    process.freeze()
    world.ledger.standstills += 1
    seconds = _seconds(world, 0.3, 2.0, 20.0, 45.0, 100.0)
    world.simulation.later(seconds, process.thaw)
    return f"{node.name} is frozen for {seconds:g} s"


# Redis ---------------------------------------------------------------------------------------------------------------


def cut(world: World, node: Node) -> str:
    """All connections to a server end."""
    _victim(world).cut()
    return "Redis cuts all connections"


def lose_network(world: World, node: Node) -> str:
    """One process loses Redis, or Redis and the database, and the others do not."""
    seconds, both = _seconds(world, 0.1, 3.0, 30.0, 80.0), world.chance.random() < 0.5
    node.line.is_down = True
    node.line.cut()
    world.simulation.later(seconds, lambda: setattr(node.line, "is_down", False))
    if both:
        _partition(world, node, seconds)
    return f"{node.name} loses its network to Redis{' and to the database' if both else ''} for {seconds:g} s"


def refuse(world: World, node: Node) -> str:
    """A server is gone for a while."""
    server, seconds = _victim(world), _seconds(world, 0.1, 2.0, 30.0)
    server.refuse()
    world.simulation.later(seconds, server.restore)
    return f"Redis is away for {seconds:g} s"


def hang(world: World, node: Node) -> str:
    """A server is frozen for a while."""
    server, seconds = _victim(world), _seconds(world, 0.1, 1.0, 4.0, 30.0)
    server.hang()
    world.simulation.later(seconds, server.resume)
    return f"Redis is frozen for {seconds:g} s"


def restart_redis(world: World, node: Node) -> str:
    """A server dies, and is back at once, loading its data."""
    loading = _seconds(world, 0.0, 2.0)
    _victim(world).restart(loading=loading)
    return f"Redis is restarted, and loads for {loading:g} s"


def error(world: World, node: Node) -> str:
    """The next commands are refused in some way."""
    command, refusal = world.chance.choice(_commands(world, *COMMANDS)), world.chance.choice(REFUSALS)
    times = world.chance.choice([1, 1, 3, 20])
    _victim(world).fail_next(command, refusal, times=times)
    return f"Redis refuses {command} {times} times: {refusal}"


def state(world: World, node: Node) -> str:
    """A server is in a state in which it refuses what a real one would."""
    row, seconds = world.chance.choice(STATES), _seconds(world, 0.5, 5.0, 40.0)
    _victim(world).answer(row, until=trio.current_time() + seconds)
    return f"Redis is {row} for {seconds:g} s"


def wake(world: World, node: Node) -> str:
    """Blocked readers are woken with an error."""
    row = world.chance.choice(WAKE_UPS)
    _victim(world).answer(row)
    return f"Redis wakes its blocked readers: {row}"


def cut_after(world: World, node: Node) -> str:
    """The connection ends with one of the next commands, before or after its effect."""
    command = world.chance.choice(_commands(world, "XADD", "XREADGROUP", "XACK", "EVALSHA", "EXEC"))
    when = world.chance.choice(["before", "after"])
    number = world.chance.randint(1, 4)
    _victim(world).cut_after(number, "before" if when == "before" else "after", command=command)
    return f"Redis cuts the connection {when} {command} number {number}"


def drop_replies(world: World, node: Node) -> str:
    """The connections of now are half open: commands arrive, replies do not."""
    _victim(world).drop_replies()
    return "the replies of Redis get lost"


def destroy_group(world: World, node: Node) -> str:
    """Somebody destroys a group; twice at short intervals is a crash, and meant to be one."""
    key, group, data = world.ledger.some_group(world.chance)
    if data is None or trio.current_time() - world.destroyed.get((key, group), -math.inf) < NOT_AGAIN:
        return ""
    world.destroyed[key, group] = trio.current_time()
    stream = data.databases[0][key.encode()].value
    stream.group_delete(group.encode())
    data.changed = True
    data.serve_blocked()
    return f"the group {group} of {key} is destroyed"


def trim(world: World, node: Node) -> str:
    """Somebody trims what he must not."""
    return world.ledger.trim(world.chance)


def replay_letters(world: World, node: Node) -> str:
    """Somebody has the dead letters of now tried again."""
    if not world.ledger.replayable():
        return ""
    world.replay_letters()
    return "somebody replays the dead letters"


# A cluster -----------------------------------------------------------------------------------------------------------


def fail_over(world: World, node: Node) -> str:
    """A replica takes over."""
    if not isinstance(world.redis, InProcessCluster):
        return ""
    key = world.chance.choice(world.keys)
    for replica in world.redis.replicas_of(world.redis.master_of(key))[:1]:
        world.redis.fail_over(replica)
        return f"the replica of the master of {key} takes over"
    return ""


def migrate(world: World, node: Node) -> str:
    """A slot moves."""
    cluster = world.redis
    if not isinstance(cluster, InProcessCluster):
        return ""
    slot = slot_of(world.chance.choice(world.keys))
    others = [each for each in cluster.masters() if each is not cluster.master_of(slot)]
    if not others or slot in cluster._migrations:
        return ""
    cluster.begin_migration(slot, world.chance.choice(others))
    pause = _seconds(world, 0.0, 0.5, 5.0)
    world.simulation.later(pause, lambda: cluster.move_keys(slot))
    world.simulation.later(pause + _seconds(world, 0.1, 0.5, 5.0), lambda: cluster.finish_migration(slot))
    return f"slot {slot} moves"


# The database --------------------------------------------------------------------------------------------------------


def lose_database(world: World, node: Node) -> str:
    """The database is gone for a while."""
    seconds, told = _seconds(world, 0.0, 0.1, 5.0, 60.0), world.chance.random() < 0.7
    world.lose_database("server closed the connection unexpectedly", told=told)
    world.simulation.later(seconds, world.restore_database)
    return f"the database is away for {seconds:g} s"


def lose_commit(world: World, node: Node) -> str:
    """The next commit's answer is lost."""
    effect = world.chance.random() < 0.5
    world.store.lose_commit(effect=effect)
    return f"the answer of the next commit is lost, {'after' if effect else 'before'} it took effect"


def end_session(world: World, node: Node) -> str:
    """One connection to the database ends, as by ``pg_terminate_backend``."""
    works = list(world.store.server.open)
    if not works:
        return ""
    world.chance.choice(works).lose()
    return "a connection to the database ends"


def fail_statement(world: World, node: Node) -> str:
    """The next statement of a handler is the victim of a deadlock."""
    world.store.fail_statement(psycopg.errors.DeadlockDetected("deadlock detected"))
    return "the next statement of a handler meets a deadlock"


def partition_database(world: World, node: Node) -> str:
    """One process loses the database, and the others do not."""
    seconds = _seconds(world, 0.2, 5.0, 60.0)
    _partition(world, node, seconds)
    return f"{node.name} loses its network to the database for {seconds:g} s"


def _partition(world: World, node: Node, seconds: float) -> None:
    node.is_partitioned = True
    assert node.process is not None  # noqa: S101 - it has made a step
    for work in [each for each in world.store.server.open if node.process.owns(each.task)]:
        work.lose()
    world.simulation.later(seconds, lambda: setattr(node, "is_partitioned", False))


# Outside ------------------------------------------------------------------------------------------------------------


def lose_outside(world: World, node: Node) -> str:
    """What stands behind a gate of the system's own is away for a while, for everybody."""
    gates = [gate for gate in world.system.gates if gate not in world.outside]
    if not gates:
        return ""
    gate, seconds = world.chance.choice(gates), _seconds(world, 0.1, 2.0, 30.0, 90.0)
    world.outside[gate] = "connection refused"
    world.simulation.later(seconds, lambda: world.restore_outside(gate))
    return f"what is behind the gate {gate} is away for {seconds:g} s"


FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    (kill, 5),
    (kill_for_good, 1),
    (join, 1),
    (stop, 2),
    (freeze, 3),
    (cut, 2),
    (lose_network, 2),
    (refuse, 2),
    (hang, 2),
    (restart_redis, 1),
    (error, 4),
    (state, 3),
    (wake, 1),
    (cut_after, 4),
    (drop_replies, 1),
    (destroy_group, 1),
    (trim, 1),
    (replay_letters, 2),
    (fail_over, 3),
    (migrate, 3),
    (lose_database, 3),
    (lose_commit, 4),
    (end_session, 3),
    (fail_statement, 1),
    (partition_database, 2),
)
"""The faults that any system can meet with, and how often each is drawn among the others."""
