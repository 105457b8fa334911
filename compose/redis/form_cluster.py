"""Make one Redis Cluster of the nodes named, or mend the one that they are. Run it as often as you like.

    REDIS_PASSWORD=… python form_cluster.py [--replicas N] [--deadline SECONDS] HOST:PORT HOST:PORT …

It looks at all nodes, does what is missing, and looks again until all is in order (see `cluster_plan`). Exit codes:

- 0: it is; or a node is missing at the deadline, and the others serve all slots without it;
- 1: the deadline has passed; the last line says what it waited for;
- 2: it refuses, and says why: a node holds data outside of a cluster, the nodes belong to different ones, …
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

import click
import redis.exceptions
import trio
from cluster_plan import NotYet, Order, Refused, Row, View, decide

from penstock.runtime.redis import Redis, RedisOptions, RedisUnavailable

PAUSE = 0.25
"""Seconds between two looks: another process has no event to wait for."""

LIMIT = 5.0
"""Seconds that a node has to answer."""


class Missing(NotYet):
    """Some nodes do not answer. `views` are what the others say."""

    def __init__(self, text: str, views: Sequence[View]) -> None:
        super().__init__(text)
        self.views = views

    @property
    def are_dispensable(self) -> bool:
        """Whether the others are a cluster in order: replicas have taken over."""
        try:
            return bool(self.views) and not decide(self.views, 0)
        except (NotYet, Refused):
            return False


class Former:
    """Looks at the nodes, and gives them orders.

    Args:
        nodes: hosts and ports; the masters of a new cluster first.
        replicas: how many each master is to have.
        password: of the default user.
    """

    def __init__(self, nodes: Sequence[tuple[str, int]], replicas: int, password: str | None) -> None:
        self._replicas = replicas
        self._nodes = {
            f"{host}:{port}": RedisOptions(
                host=host, port=port, password=password, decode_responses=True, retry_for=0, response_timeout=LIMIT
            )
            for host, port in nodes
        }
        self._told: set[str] = set()

    async def run(self, limit: float) -> str:
        """Return, with words for it, when all is in order, or when what is missing after `limit` seconds is not needed.

        Raises:
            NotYet: it is not within that time; the text says what is missing.
            Refused: as `decide` does, and when a password is wrong or a server is in no cluster mode.
        """
        deadline = trio.current_time() + limit
        while True:
            try:
                orders = decide(await self._look(), self._replicas)
                if not orders:
                    return "the cluster is in order"
                await self._give(orders)
                reason = NotYet(f"{orders[0].name} {orders[0].purpose}: told so, and does not; see the nodes' logs")
            except NotYet as error:
                self._tell(f"waiting: {error}")
                reason = error
            if trio.current_time() > deadline:
                if isinstance(reason, Missing) and reason.are_dispensable:
                    return f"{len(reason.views)} nodes serve all slots without those that are missing"
                raise reason
            await trio.sleep(PAUSE)

    async def _look(self) -> list[View]:
        """What all nodes say. Raises Missing or Refused."""
        found: dict[str, View | Exception] = {}

        async def look(name: str, options: RedisOptions) -> None:
            try:
                found[name] = await _view(name, options)
            except (NotYet, Refused) as error:
                found[name] = error

        async with trio.open_nursery() as nursery:
            for name, options in self._nodes.items():
                nursery.start_soon(look, name, options)
        answers = [found[name] for name in self._nodes]
        for error in answers:
            if isinstance(error, Refused):
                raise error
        views = [view for view in answers if isinstance(view, View)]
        if missing := [str(error) for error in answers if isinstance(error, NotYet)]:
            raise Missing("; ".join(missing), views)
        return views

    async def _give(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self._tell(f"{order.name} {order.purpose}")
            try:
                async with Redis(self._nodes[order.name]) as client:
                    await client.execute_command(*order.command)
            except redis.exceptions.RedisError as error:
                # Another run was faster, or not every node knows the others yet: the next look tells.
                raise _judged(order.name, error) from error

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            click.echo(line)


async def _view(name: str, options: RedisOptions) -> View:
    """Raises NotYet while the node does not answer, Refused when it never will."""
    try:
        with trio.fail_after(LIMIT):
            ip = await _present_address(options.host, options.port)
            async with Redis(options) as client:
                info = await client.info()
                if not info["cluster_enabled"]:
                    raise Refused(f"{name} is not in cluster mode; start it with `cluster-enabled yes`")
                lines = str(await client.execute_command("CLUSTER", "NODES")).splitlines()
                cluster = str(await client.execute_command("CLUSTER", "INFO"))
                keys = int(await client.dbsize())
    except trio.TooSlowError:
        raise NotYet(f"{name}: no answer within {LIMIT:g} s") from None
    except OSError as error:
        raise NotYet(f"{name}: {error.strerror or error}") from error
    except redis.exceptions.RedisError as error:
        raise _judged(name, error) from error
    rows = [Row.parse(line) for line in lines]
    return View(
        name=name,
        ip=ip,
        port=options.port,
        me=next(row for row in rows if "myself" in row.flags),
        rows={row.id: row for row in rows if "handshake" not in row.flags},
        state=cluster.partition("cluster_state:")[2].split()[0],
        keys=keys,
        in_step=info["role"] == "master" or info["master_link_status"] == "up",
    )


async def _present_address(host: str, port: int) -> str:
    """CLUSTER MEET takes addresses only; where a host has both, the older kind, which every container network has."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def _judged(name: str, error: redis.exceptions.RedisError) -> NotYet | Refused:
    reply: BaseException | None = error
    while isinstance(reply, RedisUnavailable):  # the answer to a login lies below what became of the connection
        reply = reply.__cause__
    if isinstance(reply, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
        return Refused(f"{name}: {reply}; is REDIS_PASSWORD the one that the node was started with?")
    return NotYet(str(error) if name in str(error) else f"{name}: {error}")


def _addresses(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    found = []
    for value in values:
        host, _colon, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise click.BadParameter(f"{value!r} is not HOST:PORT")
        found.append((host.strip("[]"), int(port)))
    if len(set(found)) < len(found):
        raise click.BadParameter("name each node once")
    return found


@click.command()
@click.argument("nodes", nargs=-1, required=True, metavar="HOST:PORT…", callback=_addresses)
@click.option("--replicas", type=click.IntRange(0), default=0, show_default=True, help="Replicas of each master.")
@click.option("--deadline", type=click.FloatRange(0), default=120.0, show_default=True, help="Seconds.")
def main(nodes: list[tuple[str, int]], replicas: int, deadline: float) -> None:
    """Make one Redis Cluster of the nodes, or mend the one that they are; the masters of a new one come first.

    The password of the default user is taken from REDIS_PASSWORD.
    """
    if len(nodes) < 3 * (replicas + 1):
        raise click.UsageError(f"three masters with {replicas} replicas each are {3 * (replicas + 1)} nodes")
    former = Former(nodes, replicas, os.environ.get("REDIS_PASSWORD") or None)
    try:
        click.echo(trio.run(former.run, deadline))
    except Refused as reason:
        click.echo(f"refused: {reason}", err=True)
        sys.exit(2)
    except NotYet as reason:
        click.echo(f"not within {deadline:g} s: {reason}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
