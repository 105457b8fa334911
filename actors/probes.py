"""What "healthy" means: for Redis, that streams can be read and written; for PostgreSQL, that it takes writes.

PING proves nothing (it is answered while a cluster is down), and an empty stream is healthy.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import psycopg
import redis.exceptions
import trio
from attrs import field, frozen

from ..runtime.postgres import PostgresOptions
from ..runtime.postgres import probe as probe_postgres
from ..runtime.redis import AnyRedis, Redis, RedisOptions, SentinelOptions, open_client
from ..runtime.redis.replies import reply_text
from ..runtime.redis.slots import hash_tag, slot_of
from ..runtime.supervision import ErrorInfo
from ..runtime.supervision.outcome import outcome_of
from ..runtime.telemetry import get_logger
from .stream_view import GroupView, StreamView, observe

if TYPE_CHECKING:
    from ..runtime.supervision import Gate

__all__ = [
    "GroupView",
    "PostgresProbe",
    "RedisProbe",
    "StreamView",
    "Unhealthy",
    "ask_outside",
    "check_stream",
    "observe",
    "probe_key",
    "tell_memory",
]

log = get_logger(__name__)

_OURS: Final = (trio.Cancelled, KeyboardInterrupt)


class Unhealthy(Exception):
    """A server cannot do what Penstock needs of it; the text names the server and says why."""


@frozen
class RedisProbe:
    """Asks a Redis server, over a connection opened for the purpose, whether streams work on it.

    Attributes:
        options: the server, or the Sentinels that know it. A cluster has `ClusterProbe`.
        streams: the declared streams' keys.
        connect: opens the byte stream instead of the options; None for the real one.
        memory: the gate that is shut while a server that is well otherwise is full: it refuses new entries, and lets
            everybody read and acknowledge. None where nobody asks; then being full is unhealthy, too.
        rng: of the jitter between attempts to connect; None for one of its own.
    """

    options: RedisOptions | SentinelOptions
    streams: Sequence[str]
    connect: Callable[[], Any] | None = field(default=None, repr=False)
    memory: Gate | None = None
    rng: random.Random | None = field(default=None, repr=False)

    async def __call__(self) -> None:
        """Raise `Unhealthy` unless the cluster (where there is one) is up and every stream can be read and written.

        Blocks as long as the link's own limits; callers set a shorter one by cancelling.
        """
        address = self.options.address
        try:
            async with self.client() as client:
                await self._check_cluster(client)
                is_fault = self.memory is None
                full = [await check_stream(client, stream, address, full_is_fault=is_fault) for stream in self.streams]
        except redis.exceptions.RedisError as error:
            raise Unhealthy(_told(address, error)) from error
        except Unhealthy as refused:
            if not isinstance(refused.__cause__, redis.exceptions.AskError):  # MOVED is one, too
                raise
            raise Unhealthy(
                f"{refused}; this is one node of a cluster: begin the URL with redis+cluster://"
            ) from refused
        tell_memory(self.memory, full)

    def client(self) -> Redis:
        """A fresh client, to be entered."""
        return open_client(self.options, connect=self.connect, rng=self.rng)

    async def _check_cluster(self, client: AnyRedis) -> None:
        info: Mapping[str, Any] = await client.info("cluster")
        if not info.get("cluster_enabled"):
            return
        state = _parsed(await client.execute_command("CLUSTER INFO")).get("cluster_state", "unknown")
        log.debug("redis cluster state", state=state, node=self.options.address)
        if state != "ok":
            failed = _failed_nodes(await client.execute_command("CLUSTER NODES"))
            nodes = f"; failed nodes: {', '.join(failed)}" if failed else ""
            raise Unhealthy(f"{self.options.address}: cluster_state is {state}{nodes}")


async def check_stream(client: AnyRedis, stream: str, where: str, *, full_is_fault: bool) -> str | None:
    """Raise `Unhealthy`, naming the stream and `where` it is, unless it can be read and written.

    Returns what the server says if it is full, where that is no fault; None if it is not.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    full = None
    try:
        # NOMKSTREAM on a key that never exists: answered nil where writing is possible, else with the very refusal;
        # nothing is stored either way. The tag keeps it in the stream's slot.
        await client.execute_command("XADD", probe_key(stream), "NOMKSTREAM", "*", "probe", "1")
    except redis.exceptions.OutOfMemoryError as error:
        full = _refused(where, "XADD", probe_key(stream), error)
        if full_is_fault:
            raise Unhealthy(full) from error
    except redis.exceptions.ResponseError as error:
        raise Unhealthy(_refused(where, "XADD", probe_key(stream), error)) from error
    try:
        await client.xrange(stream, count=1)
    except redis.exceptions.ResponseError as error:
        raise Unhealthy(_refused(where, "XRANGE", stream, error)) from error
    return full


def tell_memory(gate: Gate | None, refusals: Iterable[str | None]) -> None:
    """Shut the gate with the first refusal of a full server, or open it if there is none."""
    if gate is None:
        return
    full = next((refusal for refusal in refusals if refusal is not None), None)
    if full is None:
        gate.open()
    else:
        gate.shut(full)


def _refused(where: str, command: str, key: str, error: Exception) -> str:
    return f"{where}: {command} {key}: {reply_text(error)}"


@cache
def probe_key(stream: str) -> str:
    """A key in the slot of `stream` that is written to and never exists."""
    tag = hash_tag(stream)
    if tag and "}" not in tag:
        return f"{{{tag}}}:penstock-probe"
    # It cannot stand between braces. The key decides by its whole text; so does a number that is looked for.
    slot = slot_of(stream)
    return next(key for key in (f"penstock-probe:{number}" for number in count()) if slot_of(key) == slot)


def _told(address: str, error: Exception) -> str:
    text = str(error)
    return text if address in text else f"{address}: {text}"


def _parsed(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):
        return {str(_text(name)): str(_text(value)) for name, value in reply.items()}
    lines = (line.partition(":") for line in _text(reply).splitlines())
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def _failed_nodes(reply: Any) -> list[str]:
    """The addresses of the nodes that CLUSTER NODES flags as failed."""
    if isinstance(reply, Mapping):
        return [str(_text(address)) for address, node in reply.items() if "fail" in str(node.get("flags", ""))]
    rows = [line.split() for line in _text(reply).splitlines()]
    return [row[1].partition("@")[0] for row in rows if len(row) > 2 and "fail" in row[2]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def ask_outside(name: str, probe: Callable[[], Awaitable[None]]) -> None:
    """Ask a probe of the user's; raise `Unhealthy` with whatever it raises, also with what would end the process."""
    answer: object
    try:
        answer = await probe()  # type: ignore[func-returns-value]
    except BaseException as error:
        # A cancellation is not for a probe to raise, nor for us to hide; what came with it is told by nobody.
        ours = _ours_of(error)
        if ours is error:
            raise
        if ours is not None:
            raise ours from None
        told = outcome_of(error).error or error
        raise Unhealthy(f"{name}: {ErrorInfo.of(told).message or type(told).__name__}") from error
    if answer is False:
        raise Unhealthy(f"{name}: its probe returned False; one that finds a fault should raise, and say which")


def _ours_of(error: BaseException) -> BaseException | None:
    """What a cancellation, or the user at the keyboard, has of an error; None if nothing is of them."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(_OURS)[0]
    return error if isinstance(error, _OURS) else None


@frozen
class PostgresProbe:
    """Asks a PostgreSQL server, over a connection opened for the purpose, whether it takes writes."""

    options: PostgresOptions

    async def __call__(self) -> None:
        """Raise `Unhealthy` unless it does. Blocks as long as the connect timeout; callers set a shorter limit."""
        try:
            await probe_postgres(self.options)
        except psycopg.Error as error:
            raise Unhealthy(_told(self.options.address, error)) from error
