"""Adding entries to streams, in bursts that keep the order: what fails is never overtaken by what is behind it.

All entries of a burst for one key in Redis are added in one step (MULTI), so that of each key either all are there or
none. Different keys are added at the same time, and fail by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import redis.exceptions
import trio
from attrs import frozen

from ..runtime.redis import Kind, NotSent, RedisUnavailable, classify
from ..runtime.redis.replies import reply_text

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Gate
    from .capabilities import Capabilities
    from .event import Fields
    from .ownership import Claim, Ownership

__all__ = ["Addable", "Refusal", "Sender"]


class Addable(Protocol):
    """What can be added to a stream."""

    @property
    def place(self) -> str:
        """The key in Redis."""
        ...

    @property
    def event_id(self) -> UUID | None:
        """Of the event in it."""
        ...

    @property
    def fields(self) -> Fields:
        """The entry's fields."""
        ...

    @property
    def max_len(self) -> int | None:
        """About how many entries `place` may have; None: any number."""
        ...


@frozen
class Refusal:
    """An entry was not added, as far as we know.

    Attributes:
        reason: for people.
        unknown: it may have been added all the same.
        permanent: it will never be taken: it is our own mistake. (What a person can mend at the server is none.)
    """

    reason: str
    unknown: bool = False
    permanent: bool = False


@frozen
class Sender:
    """See the module.

    Args:
        client: the link, asked for at each use.
        gates: all must be open for entries to be added: ``redis``, then ``redis-memory``.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        producer: by which name servers with IDMP know who adds: the same for as long as an entry may be added again.
        believes_late: whether an answer counts that comes after the gate ``redis`` was shut; see `Producer`.
        ownership: who is asked whether an acknowledgement counts; see `Producer`.
        capabilities: what all masters can do; None: nothing beyond the oldest supported server.
    """

    client: Callable[[], AnyRedis]
    gates: tuple[Gate, ...]
    trouble: Callable[[Exception], None]
    producer: str = ""
    believes_late: bool = True
    ownership: Ownership | None = None
    capabilities: Capabilities | None = None

    def why_not(self) -> str:
        """Why no entry can be added now; empty if it can."""
        return next((f"{gate.name}: {gate.cause}" for gate in self.gates if not gate.is_open), "")

    async def wait(self) -> None:
        """Block until it can be tried. A checkpoint."""
        for gate in self.gates:
            await gate.wait_open()

    async def add(self, entries: Sequence[Addable]) -> list[str | Refusal]:
        """Add them; for each its id, or why not. Of one key all are added or none.

        Blocks as long as the link does (its own limits), and raises nothing for Redis. Cancelled, the outcome is
        unknown.
        """
        if why := self.why_not():
            await trio.lowlevel.checkpoint()
            return [Refusal(why)] * len(entries)
        if self.believes_late:
            return await self._add(entries)
        results: list[str | Refusal] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, nursery.cancel_scope)
            results = await self._add(entries)
            nursery.cancel_scope.cancel(reason="the burst is answered")
        return results or [Refusal(self.why_not() or "Redis was away meanwhile", unknown=True)] * len(entries)

    async def _give_up(self, burst: trio.CancelScope) -> None:
        await self.gates[0].wait_shut()
        burst.cancel(reason="the gate redis was shut")

    async def _add(self, entries: Sequence[Addable]) -> list[str | Refusal]:
        shares: dict[str, list[Addable]] = {}
        for entry in entries:
            shares.setdefault(entry.place, []).append(entry)
        if len(shares) == 1:
            [(place, share)] = shares.items()
            return await self._add_to(place, share)
        results: dict[str, list[str | Refusal]] = {}

        async def add(place: str, share: Sequence[Addable]) -> None:
            results[place] = await self._add_to(place, share)

        async with trio.open_nursery() as nursery:
            for place, share in shares.items():
                nursery.start_soon(add, place, share)
        each = {place: iter(found) for place, found in results.items()}
        return [next(each[entry.place]) for entry in entries]

    async def _add_to(self, place: str, entries: Sequence[Addable]) -> list[str | Refusal]:
        """All of one key."""
        try:
            claims = await self._claims(place)
            pipeline = self.client().pipeline(transaction=len(entries) > 1)
            for entry in entries:
                try:
                    pipeline.execute_command("XADD", place, *self._words(entry))
                except UnicodeEncodeError:
                    pipeline.execute_command("XADD", place, *map(_bytes, self._words(entry)))
            # A transaction is refused as a whole, and raises.
            replies = await pipeline.execute()
        except redis.exceptions.RedisError as error:
            return [self._refusal(error)] * len(entries)
        ids = [_text(reply) for reply in replies]
        if why := await self._doubt(claims, place, ids, entries):
            return [Refusal(why, unknown=True)] * len(entries)
        return list(ids)

    async def add_if(self, condition: str, entry: Addable) -> str | Refusal | None:
        """Add one entry if the key `condition` holds ``true`` at that moment: its id, None if it does not, or why not.

        See `add` for the rest. Both keys must be in one slot.
        """
        if why := self.why_not():
            await trio.lowlevel.checkpoint()
            return Refusal(why)
        try:
            claims = await self._claims(entry.place)
            script = self.client().register_script(_ADD_IF)
            reply = await script([entry.place, condition], self._words(entry))
        except redis.exceptions.RedisError as error:
            return self._refusal(error)
        if reply is None:
            return None
        why = await self._doubt(claims, entry.place, [_text(reply)], [entry])
        return Refusal(why, unknown=True) if why else _text(reply)

    def _words(self, entry: Addable) -> list[Any]:
        """What stands behind ``XADD key``."""
        words: list[Any] = []
        if entry.max_len is not None:
            words += ["MAXLEN", "~", entry.max_len]
        if self.capabilities is not None and self.capabilities.idmp and entry.event_id is not None:
            words += ["IDMP", self.producer, str(entry.event_id)]
        words.append("*")
        for field in entry.fields.items():
            words += field
        return words

    async def _claims(self, place: str) -> Mapping[str, Claim]:
        return {} if self.ownership is None else await self.ownership.claims((place,))

    async def _doubt(
        self, claims: Mapping[str, Claim], place: str, ids: Sequence[str], entries: Sequence[Addable]
    ) -> str:
        """Why the acknowledgement does not count; empty if it does."""
        if self.ownership is None:
            return ""
        written = [(entry_id, entry.fields) for entry_id, entry in zip(ids, entries, strict=True)]
        return (await self.ownership.doubts(claims, {place: written})).get(place, "")

    def _refusal(self, error: redis.exceptions.RedisError) -> Refusal:
        self.trouble(error)
        if isinstance(error, RedisUnavailable):
            return Refusal(str(error), unknown=not isinstance(error, NotSent))
        text = reply_text(error)
        if self.capabilities is not None and self.capabilities.idmp and _KNOWS_NO_IDMP in text:
            # An older server has taken the place of the one that we asked.
            self.capabilities.forget()
            return Refusal(f"Redis refused: {text}")
        return Refusal(f"Redis refused: {text}", permanent=classify(error).kind is Kind.BUG)


_KNOWS_NO_IDMP: Final = "Invalid stream ID specified"
"""How servers word it that read IDMP as an id."""

_ADD_IF: Final = """
if redis.call('GET', KEYS[2]) ~= 'true' then return false end
return redis.call('XADD', KEYS[1], unpack(ARGV))
"""


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _bytes(word: object) -> bytes:
    """As UTF-8; what came as other bytes (see PEP 383) goes on as it came, and what is neither loses that character."""
    text = str(word)
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")
