"""The commands of a fault run on the Redis link: each one's reply can be checked, each write has a ledger."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import redis.exceptions
import trio
from attrs import define, field
from chaos_book import Book, Channel, Fate, Outcome

from penstock.runtime.redis import CommandRefused, DedicatedRedis, Gap, Message

__all__ = ["Limits", "Traffic"]

_GROUP = "g"
_SHARED = "transacted"
_ECHO = "return {KEYS[1], ARGV[1]}"
_TOKEN = "return ARGV[1]"
_BLOCK = 400  # ms


@define(frozen=True)
class Limits:
    """The longest that a call may take, seconds: what the options of the link add up to, and some slack.

    Attributes:
        command: a command on the shared connection.
        blocking: a blocking read of `_BLOCK`.
        recovery: after the last fault, until everybody gets through again.
    """

    command: float
    blocking: float
    recovery: float = 30.0


@define(eq=False)
class _Count:
    """The ledger of a counter: how often it was raised for sure, and how often perhaps.

    What a failover loses is taken off `sure`. It stays in `ever`: a master that has not yet heard that it is none any
    more may answer in between, from another past.
    """

    sure: int = 0
    ever: int = 0
    perhaps: int = 0
    last: int = 0


@define(eq=False)
class _Stream:
    """The ledger of a stream: tokens by what is known of them."""

    name: str
    acknowledged: dict[str, str] = field(factory=dict)  # token -> entry id
    perhaps: set[str] = field(factory=set)
    never: set[str] = field(factory=set)
    seen: Counter[str] = field(factory=Counter)  # delivered as new to the group
    acks: Counter[str] = field(factory=Counter)


@define(eq=False)
class Traffic:
    """Many tasks on one client. `run` until `stop`, then `settle`.

    Attributes:
        client: a Redis or a RedisCluster.
        may_lose: whether what was acknowledged may be gone (asynchronous replication and a failover).
        haste: calls a second and task, about.
    """

    client: Any
    book: Book
    limits: Limits
    may_lose: Callable[[], bool]
    clustered: bool = False
    haste: float = 100.0
    running: bool = field(default=True, init=False)
    _tokens: Any = field(factory=itertools.count, init=False)
    _counts: dict[str, _Count] = field(factory=dict, init=False)
    _streams: list[_Stream] = field(factory=list, init=False)
    _transacted: set[int] = field(factory=set, init=False)
    _channels: list[Channel] = field(factory=list, init=False)
    _script: Any = field(default=None, init=False)

    async def run(self, *, scale: int = 1) -> None:
        """Until `stop`. Each task ends with a call that succeeds, or with a violation."""
        self._streams = [_Stream(f"events:{number}") for number in range(3)]
        self._channels = [Channel(name, strict=not self.clustered) for name in ("channel:0", "channel:1", "shard:0")]
        self._script = self.client.register_script(_ECHO)
        await self._make_groups()
        works = {
            self._echo: 4,
            self._store: 6,
            self._count: 4,
            self._burst: 4,
            self._run_script: 2,
            self._transact: 2,
            self._pop: 2,
            self._measure: 1,
        }
        async with trio.open_nursery() as nursery:
            for work, number in works.items():
                for each in range(number * scale):
                    nursery.start_soon(self._repeat, work, f"{work.__name__[1:]}:{each}")
            for stream in self._streams:
                for each in range(2):
                    nursery.start_soon(self._repeat, partial(self._add, stream), f"add:{stream.name}:{each}")
                    nursery.start_soon(self._read, stream, f"c{each}")
            for channel in self._channels:
                nursery.start_soon(self._listen, channel)
                nursery.start_soon(self._repeat, partial(self._publish, channel), f"publish:{channel.name}")

    def stop(self) -> None:
        """Let each task make its last call."""
        self.running = False

    async def settle(self) -> None:
        """With all faults over: see that what was acknowledged is there, once, and nothing that was never sent."""
        for name, count in self._counts.items():
            value = int(await self.client.get(name) or 0)
            self._check_count(name, count, value, count.sure)
        for stream in self._streams:
            await self._settle_stream(stream)
        for channel in self._channels:
            for fault in channel.faults():
                self.book.wrong(f"{channel.name}: {fault}")
            self.book.notes["messages"] += len(channel.log)
            self.book.notes["gaps"] += channel.log.count(None)
        self.book.notes["writes acknowledged"] += sum(len(each.acknowledged) for each in self._streams)
        self.book.notes["writes unknown"] += sum(len(each.perhaps) for each in self._streams)

    async def _make_groups(self) -> None:
        for stream in self._streams:
            await self.client.xgroup_create(stream.name, _GROUP, "0", mkstream=True)

    async def _repeat(self, work: Callable[[str, random.Random], Awaitable[Outcome]], name: str) -> None:
        rng = self.book.rng(name)
        while self.running:
            outcome = await self._checked(work, name, rng)
            await trio.sleep(rng.expovariate(self.haste) if outcome.done else 0.02)
        since = trio.current_time()
        while not (await self._checked(work, name, rng)).done:
            if trio.current_time() - since > self.limits.recovery:
                self.book.wrong(f"{name} does not get through {self.limits.recovery:g} s after the last fault")
                return
            await trio.sleep(0.05)

    async def _checked(
        self, work: Callable[[str, random.Random], Awaitable[Outcome]], name: str, rng: random.Random
    ) -> Outcome:
        """A round; a reply of another shape than the command's cannot even be looked at."""
        try:
            return await work(name, rng)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            self.book.wrong(f"WRONG REPLY: {name} got something of another type: {error!r}")
            return Outcome(Fate.UNKNOWN, error=error)

    async def _call(
        self, work: str, rng: random.Random, command: Callable[[], Awaitable[Any]], limit: float | None = None
    ) -> Outcome:
        """One in eight is cancelled: most within the time of a round trip, some later."""
        cancel_after = None
        if self.running and rng.random() < 0.125:
            cancel_after = rng.choice([0.0, rng.uniform(0, 0.002), rng.uniform(0, 0.5)])
        return await self.book.call(work, limit or self.limits.command, command, cancel_after=cancel_after)

    def _token(self, name: str, rng: random.Random) -> str:
        return f"{name}/{next(self._tokens)}/" + "x" * rng.choice([0, 10, 300, 5000])

    def _expect(self, what: str, got: Any, *expected: Any) -> None:
        if got not in expected:
            self.book.wrong(f"WRONG REPLY: {what} got {_short(got)}, expected {_short(expected)}")

    # Each of these makes one round of calls, and returns how the last of them ended.

    async def _echo(self, name: str, rng: random.Random) -> Outcome:
        token = self._token(name, rng)
        outcome = await self._call("ECHO", rng, lambda: self.client.echo(token))
        if outcome.done:
            self._expect("ECHO", _text(outcome.value), token)
        return outcome

    async def _store(self, name: str, rng: random.Random) -> Outcome:
        """A key of its own each time: a SET that comes late (from a socket that thaws) must not confuse us."""
        token, key = self._token(name, rng), f"{name}:{next(self._tokens)}"
        stored = await self._call("SET", rng, lambda: self.client.set(key, token, ex=120))
        if stored.done:
            self._expect("SET", stored.value, True)
        outcome = await self._call("GET", rng, lambda: self.client.get(key))
        if outcome.done:
            value = _text(outcome.value)
            if value is None and stored.done:
                self._lost(f"the value of {key}")
            elif stored.fate is Fate.NOT_RUN:
                self._expect(f"GET after a SET that was never sent ({stored.error!r})", value, None)
            else:
                self._expect("GET", value, token, None)
        return outcome

    async def _count(self, name: str, rng: random.Random) -> Outcome:
        count = self._counts.setdefault(name, _Count())
        outcome = await self._call("INCR", rng, lambda: self.client.incr(name))
        if outcome.done:
            count.sure += 1
            count.ever += 1
            self._check_count(name, count, outcome.value, max(count.sure, count.last + 1))
            if isinstance(outcome.value, int):
                count.last = outcome.value
        elif outcome.fate is Fate.UNKNOWN:
            count.perhaps += 1
        return outcome

    def _check_count(self, name: str, count: _Count, value: Any, at_least: int) -> None:
        if not isinstance(value, int) or value > (count.ever if self.may_lose() else count.sure) + count.perhaps:
            self.book.wrong(
                f"WRONG REPLY or done twice: {name} is {_short(value)} after {count.sure} increments"
                f" and {count.perhaps} of unknown outcome"
            )
        elif value < at_least:
            self._lost(f"increments of {name}: {value}, at least {at_least} were acknowledged", at_least - value)
            count.sure, count.last = value, value

    async def _burst(self, name: str, rng: random.Random) -> Outcome:
        number, transaction = next(self._tokens), rng.random() < 0.5
        keys = [f"{{{name}}}:{number}:{each}" for each in range(rng.randint(1, 12))]
        tokens = [self._token(name, rng) for _ in keys]

        async def run() -> Any:
            pipeline = self.client.pipeline(transaction=transaction)
            for key, token in zip(keys, tokens, strict=True):
                pipeline.set(key, token, ex=120)
                pipeline.get(key)
            return await pipeline.execute(raise_on_error=False)

        outcome = await self._call("MULTI/EXEC" if transaction else "pipeline", rng, run)
        if not outcome.done:
            return outcome
        results = outcome.value
        if len(results) != 2 * len(keys):
            self.book.wrong(f"WRONG REPLY: a pipeline of {2 * len(keys)} commands got {len(results)} results")
            return outcome
        for position, token in enumerate(tokens):
            stored, value = results[2 * position : 2 * position + 2]
            if isinstance(stored, Exception) or isinstance(value, Exception):
                if transaction:
                    self.book.notes["error within a transaction"] += 1
                continue
            self._expect("SET in a pipeline", stored, True)
            self._expect("GET in a pipeline", _text(value), token)
        return outcome

    async def _transact(self, name: str, rng: random.Random) -> Outcome:
        """Several tasks raise one counter, each by what it has read."""
        count = self._counts.setdefault(_SHARED, _Count())

        async def step(transaction: Any) -> int:
            value = int(await transaction.get(_SHARED) or 0) + 1
            transaction.multi()
            transaction.set(_SHARED, value)
            return value

        run = partial(self.client.transaction, step, _SHARED, value_from_callable=True)
        outcome = await self._call("WATCH and EXEC", rng, run)
        if outcome.done:
            count.sure += 1
            count.ever += 1
            if outcome.value in self._transacted and not self.may_lose():
                self.book.wrong(f"two transactions raised {_SHARED} to {outcome.value}")
            self._transacted.add(outcome.value)
        elif not isinstance(outcome.error, redis.exceptions.WatchError):
            count.perhaps += outcome.fate is Fate.UNKNOWN
        return outcome

    async def _run_script(self, name: str, rng: random.Random) -> Outcome:
        token = self._token(name, rng)
        outcome = await self._call("EVALSHA", rng, lambda: self._script(keys=[name], args=[token]))
        if outcome.done:
            self._expect("EVALSHA", [_text(each) for each in outcome.value], [name, token])
        return outcome

    async def _pop(self, name: str, rng: random.Random) -> Outcome:
        """A blocking command on the shared client: it borrows a connection."""
        token = self._token(name, rng)
        await self._call("RPUSH", rng, lambda: self.client.rpush(name, token))
        outcome = await self._call("BLPOP", rng, lambda: self.client.blpop([name], timeout=_BLOCK / 1000), self._block)
        if outcome.done and outcome.value is not None:
            key, value = outcome.value
            self._expect("BLPOP", _text(key), name)
            if not str(_text(value)).startswith(f"{name}/"):
                self.book.wrong(f"WRONG REPLY: BLPOP of {name} got {_short(value)}")
        return outcome

    async def _measure(self, name: str, rng: random.Random) -> Outcome:
        """Replies of other types than text: an integer, a list, an error."""
        await self._call("DEL", rng, lambda: self.client.delete(name))
        outcome = await self._call("LRANGE", rng, lambda: self.client.lrange(name, 0, -1))
        if outcome.done:
            self._expect("LRANGE of an absent key", outcome.value, [])
        return outcome

    async def _add(self, stream: _Stream, name: str, rng: random.Random) -> Outcome:
        token = self._token(name, rng)
        fields = {"token": token, "stream": stream.name}
        outcome = await self._call("XADD", rng, lambda: self.client.xadd(stream.name, fields))
        if outcome.done:
            stream.acknowledged[token] = _text(outcome.value)
        elif outcome.fate is Fate.UNKNOWN:
            stream.perhaps.add(token)
        else:
            stream.never.add(token)
        return outcome

    async def _read(self, stream: _Stream, consumer: str) -> None:
        rng = self.book.rng(f"read:{stream.name}:{consumer}")
        while self.running:
            async with self.client.dedicated(
                **({} if type(self.client).__name__ == "Redis" else {"key": stream.name})
            ) as connection:
                while self.running and rng.random() > 0.01:
                    # Not reads alone: one reply of XREADGROUP looks like another.
                    step = self._ask_once if rng.random() < 0.3 else self._read_once
                    await self._checked(partial(step, stream, connection), consumer, rng)

    async def _ask_once(
        self, stream: _Stream, connection: DedicatedRedis, consumer: str, rng: random.Random
    ) -> Outcome:
        token = self._token(consumer, rng)
        outcome = await self._call("EVAL, dedicated", rng, lambda: connection.eval(_TOKEN, 1, stream.name, token))
        if outcome.done:
            self._expect("EVAL on a connection of one's own", _text(outcome.value), token)
        else:
            await trio.sleep(0.02)
        return outcome

    async def _read_once(
        self, stream: _Stream, connection: DedicatedRedis, consumer: str, rng: random.Random
    ) -> Outcome:
        read = partial(connection.xreadgroup, _GROUP, consumer, {stream.name: ">"}, 20, _BLOCK)
        outcome = await self._call("XREADGROUP", rng, read, self._block)
        if not outcome.done:
            if isinstance(outcome.error, CommandRefused):
                self.book.wrong(f"a reader was refused: {outcome.error!r}")
            await trio.sleep(0.02)
            return outcome
        ids = []
        for key, entries in outcome.value or []:
            self._expect("XREADGROUP's stream", _text(key), stream.name)
            for entry_id, fields in entries:
                ids.append(_text(entry_id))
                self._saw(stream, entry_id, fields)
        if ids:
            done = await self._call("XACK", rng, lambda: self.client.xack(stream.name, _GROUP, *ids))
            if done.done and not isinstance(done.value, int):
                self.book.wrong(f"WRONG REPLY: XACK got {_short(done.value)}")
            if done.done and isinstance(done.value, int) and done.value > len(ids):
                self.book.wrong(f"WRONG REPLY: XACK of {len(ids)} entries got {done.value}")
        return outcome

    def _saw(self, stream: _Stream, entry_id: Any, fields: Any) -> None:
        found = {_text(name): _text(value) for name, value in (fields or {}).items()}
        self._expect("the entry's own stream", found.get("stream"), stream.name)
        token = str(found.get("token"))
        stream.seen[token] += 1
        known = stream.acknowledged.get(token)
        if known is not None:
            self._expect("the entry's id", _text(entry_id), known)

    async def _publish(self, channel: Channel, name: str, rng: random.Random) -> Outcome:
        number = len(channel.sent) + 1
        text = f"{channel.name}/{number}/" + "x" * rng.choice([0, 10, 3000])
        channel.sent[number] = Fate.UNKNOWN
        publish = self.client.spublish if channel.name.startswith("shard") else self.client.publish
        outcome = await self._call("PUBLISH", rng, lambda: publish(channel.name, text))
        channel.sent[number] = outcome.fate
        if outcome.done:
            # Two: a connection that the server has not yet found lost, and the one that replaced it.
            self._expect("PUBLISH", outcome.value, *range(6))
        return outcome

    async def _listen(self, channel: Channel) -> None:
        rng = self.book.rng(f"listen:{channel.name}")
        async with self.client.pubsub() as pubsub:
            subscribe = pubsub.ssubscribe if channel.name.startswith("shard") else pubsub.subscribe
            while not (await self._call("SUBSCRIBE", rng, lambda: subscribe(channel.name))).done:
                await trio.sleep(0.02)
            quiet = 0.0
            while self.running or quiet < 1.0:
                begin = trio.current_time()
                outcome = await self._call("get of a message", rng, partial(pubsub.get, timeout=0.3), 1.5)
                quiet = 0.0 if outcome.value is not None else quiet + trio.current_time() - begin
                if outcome.value is not None:
                    self._heard(channel, outcome.value)

    def _heard(self, channel: Channel, item: Message | Gap) -> None:
        if isinstance(item, Gap):
            channel.log.append(None)
            return
        self._expect("a message's channel", _text(item.channel), channel.name)
        name, number, _ = str(_text(item.data)).split("/")
        self._expect("a message's own channel", name, channel.name)
        if channel.sent.get(int(number)) in (None, Fate.NOT_RUN):
            self.book.wrong(f"{channel.name}: {number} came, and was never published")
        channel.log.append(int(number))

    @property
    def _block(self) -> float:
        return self.limits.blocking

    async def _settle_stream(self, stream: _Stream) -> None:
        entries = await self.client.xrange(stream.name)
        there = Counter(_text(fields[b"token"]) for _, fields in entries)
        ids = {_text(fields[b"token"]): _text(entry_id) for entry_id, fields in entries}
        for token, entry_id in stream.acknowledged.items():
            if token not in there:
                self._lost(f"{stream.name}: an acknowledged entry {entry_id}")
            elif ids[token] != entry_id:
                self.book.wrong(f"WRONG REPLY: {stream.name}: acknowledged as {entry_id}, it is {ids[token]}")
        for token, number in there.items():
            if number > 1:
                self.book.wrong(f"{stream.name}: {_short(token)} was added {number} times")
            if token in stream.never:
                self.book.wrong(f"{stream.name}: {_short(token)} is there, and the link said that it did not run")
        landed = sum(token in there for token in stream.perhaps)
        self.book.notes["writes unknown that had happened"] += landed
        await self._settle_group(stream, set(there))

    async def _settle_group(self, stream: _Stream, there: set[str]) -> None:
        """What the readers did not see must be pending or still new: a reply may be lost, an entry may not."""
        found: set[str] = set(stream.seen)
        for consumer in ("c0", "c1"):
            position = "0"
            while reply := await self._history(stream, consumer, position):
                found.update(_text(fields[b"token"]) for _, fields in reply if fields)
                position = _text(reply[-1][0])
        while reply := await self._history(stream, "c0", ">"):
            found.update(_text(fields[b"token"]) for _, fields in reply)
        for token in there - found:
            self._lost(f"{stream.name}: {_short(token)} was delivered to nobody")
        for token, number in stream.seen.items():
            if number > 1 and not self.may_lose():
                self.book.wrong(f"{stream.name}: {_short(token)} was delivered as new {number} times")

    async def _history(self, stream: _Stream, consumer: str, position: str) -> list[Any]:
        reply = await self.client.xreadgroup(_GROUP, consumer, {stream.name: position}, count=500)
        return list(reply[0][1]) if reply else []

    def _lost(self, what: str, number: int = 1) -> None:
        if self.may_lose():
            self.book.notes["acknowledged and lost by a failover"] += number
        else:
            self.book.wrong(f"LOST: {what}")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:80]}…({len(text)})…{text[-20:]}"
