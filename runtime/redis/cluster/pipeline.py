"""`ClusterPipeline`: many commands, one burst for each node; or a transaction on one slot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import redis.exceptions
import trio
from attrs import define

from .. import _compat
from ..commands import Commands, shape
from ..errors import CommandRefused, NotSent, RedisUnavailable
from ..options import RedisOptions
from ..retry import READS
from ..routing import block_of, check_shared, command_name
from ..script import digest_of
from .keyless import combiner_of, refusal_of, slot_argument_of
from .keys import common_slot, full_name, keys_of
from .router import Router
from .steps import Nature, Step, step_after
from .topology import Address

__all__ = ["ClusterPipeline"]


@define(eq=False)
class _Queued:
    """One command of a pipeline."""

    name: str
    full: str
    args: tuple[Any, ...]
    payload: bytes
    options: dict[str, Any]
    slot: int | None = None
    keys: Sequence[bytes] = ()
    reply: Any = None
    overtaken: bool = False
    unlearnt: bool = False

    @property
    def nature(self) -> Nature:
        return Nature.of(self.slot, self.full, self.args)

    @property
    def raw(self) -> bool:
        return _compat.NEVER_DECODE in self.options


class ClusterPipeline(Commands):
    """Queue commands by calling the command methods (without `await`), then `await execute()`.

    Without `transaction`, each node gets its commands in one contiguous burst, all nodes at the same time; commands of
    one slot run in the order in which they were queued. What a burst did not do because its slot or its master moved is
    then sent again one by one, in order for each slot, under the rule of `RedisCluster`. When one of them fails for
    good, those behind it in its slot that have not run are not sent: they get NotSent. So does one that was overtaken
    by another on its key (a node was in order again in the middle of the burst), unless both only read.

    With `transaction`, all keys must be in one slot; the burst is wrapped in MULTI and EXEC, runs as one step, and is
    redirected and sent again as a whole.

    The pipeline can be used again after `execute`. It belongs to one task.
    """

    def __init__(
        self,
        options: RedisOptions,
        router: Router,
        find_keys: Callable[[str, Sequence[Any]], Awaitable[Sequence[Any]]],
        *,
        transaction: bool,
    ) -> None:
        super().__init__(options)
        self._router = router
        self._find_keys = find_keys
        self._transaction = transaction
        self._queue: list[_Queued] = []
        self._scripts: set[tuple[str, int | None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return True  # an empty pipeline is a pipeline

    def execute_command(self, *args: Any, **options: Any) -> ClusterPipeline:
        """Queue one command; what every command method ends in.

        Raises CommandRefused (commands that block, change the connection, have keys of several slots, or are for more
        than one node) and redis.exceptions.DataError.
        """
        name = command_name(args)
        check_shared(name, args)
        if block_of(name, args) is not None:
            raise CommandRefused(f"{name} blocks, and would hold up everything behind the pipeline: call it by itself")
        full = full_name(name, args)
        keys = keys_of(full, args)
        slot = common_slot(full, keys) if keys else None
        if not keys and keys is not None:
            slot = _slot_without_keys(full, args)
        command = _Queued(name, full, args, _compat.pack_command(args), options, slot, _as_bytes(keys or ()))
        if self._transaction:
            self._check_slot(command)
        self._queue.append(command)
        return self

    def clear(self) -> None:
        """Forget what is queued."""
        self._queue = []
        self._scripts = set()

    def remember_script(self, sha: str, keys: Sequence[Any] = ()) -> bool:
        """Whether an earlier command of this burst carries the script's text to the same slot; from now on, one does.

        For each slot, since slots may part on the way.
        """
        place = (sha, common_slot("EVALSHA", keys) if keys else None)
        known = place in self._scripts and bool(keys)
        self._scripts.add(place)
        return known

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the bursts and return the results in the order of the commands.

        With `raise_on_error` the first error is raised (the other commands have run, unless in a transaction); without,
        errors stand in the list as exception objects, NotSent and OutcomeUnknown as well. A transaction that is refused
        as a whole, or whose connection breaks, raises in either case. Cancelled: never sent, or outcome unknown.

        Raises NotSent, OutcomeUnknown, CommandRefused, redis.exceptions.ResponseError.
        """
        queue = self._queue
        self.clear()
        if not queue:
            return []
        await self._find_slots(queue)
        until = trio.current_time() + self._router.options.retry_for
        if self._transaction:
            await self._run_transaction(queue, until)
        else:
            await self._run(queue, until)
        results = [_shaped(command, self.options) for command in queue]
        if raise_on_error:
            for number, (command, result) in enumerate(zip(queue, results, strict=True), 1):
                if isinstance(result, Exception):
                    result.add_note(f"command {number} of {len(queue)} in the pipeline: {command.full}")
                    raise result
        return results

    async def _find_slots(self, queue: list[_Queued]) -> None:
        """Ask for the keys of the commands that the table does not know."""
        for command in queue:
            if command.slot is None and keys_of(command.full, command.args) is None:
                keys = await self._find_keys(command.full, command.args)
                command.slot = common_slot(command.full, keys) if keys else None
                command.keys = _as_bytes(keys)
                if self._transaction:
                    self._check_slot(command, queue)

    def _check_slot(self, command: _Queued, queue: Sequence[_Queued] = ()) -> None:
        for other in queue or self._queue:
            if command.slot is not None and other.slot is not None and other.slot != command.slot:
                raise CommandRefused(
                    f"a transaction with keys of several slots: {other.full} is for slot {other.slot}, {command.full} "
                    f"for slot {command.slot}. Give keys that belong together one hash tag, or use "
                    "pipeline(transaction=False)"
                )

    # A transaction ---------------------------------------------------------------------------------------------------

    async def _run_transaction(self, queue: list[_Queued], until: float) -> None:
        if self.options.decode_responses and any(command.raw for command in queue):
            raise CommandRefused("a command with a binary reply (DUMP) in a transaction with decode_responses")
        router = self._router
        slot = next((command.slot for command in queue if command.slot is not None), None)
        payload = b"".join([_MULTI, *(command.payload for command in queue), _EXEC])
        attempt = router.burst(payload, len(queue) + 2, frozenset(), keyed=slot is not None)
        nature = Nature(slot, reads=all(command.full in READS for command in queue))
        replies = await router.run(nature, attempt, until=until, find=_refusal_of)
        refusal = replies if isinstance(replies, Exception) else _refusal_of(replies)
        if refusal is not None:
            raise refusal
        if replies[-1] is None:
            raise redis.exceptions.WatchError("the server discarded the transaction")
        for command, reply in zip(queue, replies[-1], strict=True):
            command.reply = reply

    # Bursts ----------------------------------------------------------------------------------------------------------

    async def _run(self, queue: list[_Queued], until: float) -> None:
        shares = await self._share_out(queue)
        if len(shares) == 1:
            [(address, share)] = shares.items()
            await self._send(address, share)
        else:
            async with trio.open_nursery() as nursery:
                for address, share in shares.items():
                    nursery.start_soon(self._send, address, share)
        _spell_out(queue)
        self._give_up_overtaken(queue)
        left = [command for command in queue if _is_unfinished(command)]
        if not left:
            return
        lines: dict[object, list[_Queued]] = {}
        for command in left:
            lines.setdefault(id(command) if command.slot is None else command.slot, []).append(command)
        where = {id(command): address for address, share in shares.items() for command in share}
        async with trio.open_nursery() as nursery:
            for line in lines.values():
                nursery.start_soon(self._send_again, line, where, until)

    def _give_up_overtaken(self, queue: list[_Queued]) -> None:
        """Do not send again what would then run after commands on the same keys that were queued behind it."""
        ran: dict[bytes, bool] = {}  # key -> whether there is a write among what ran, behind the present command
        for command in reversed(queue):
            writes = command.full not in READS
            if not isinstance(command.reply, Exception):
                ran.update({key: ran.get(key, False) or writes for key in command.keys})
            elif _is_unfinished(command) and any(key in ran and (writes or ran[key]) for key in command.keys):
                reason = "refused, and not sent again: a command behind it on the same key has run"
                refusal, command.reply = command.reply, NotSent(self._router.options.address, reason)
                command.reply.__cause__ = refusal
                command.overtaken = True

    async def _share_out(self, queue: list[_Queued]) -> dict[Address | None, list[_Queued]]:
        """The commands of each node; under None, those whose slot nobody serves at the moment."""
        topology = await self._router.discovery.current()
        anywhere = self._router.pick(topology, None)
        shares: dict[Address | None, list[_Queued]] = {}
        for command in queue:
            address = anywhere if command.slot is None else topology.owner(command.slot)
            shares.setdefault(address, []).append(command)
        return shares

    async def _send(self, address: Address | None, share: list[_Queued]) -> None:
        """One burst. Trouble becomes the reply of each of its commands."""
        if address is None:
            for command in share:
                command.reply = _compat.reply_error(f"CLUSTERDOWN Hash slot not served ({command.slot})")
            return
        raw = frozenset(place for place, command in enumerate(share) if command.raw)
        try:
            node = self._router.nodes[address]
            node.keyed = node.keyed or any(command.slot is not None for command in share)
            replies = await node.call(b"".join([command.payload for command in share]), len(share), raw)
        except RedisUnavailable as trouble:
            for command in share:
                command.reply = type(trouble)(trouble.address, trouble.reason)
                command.reply.__cause__ = trouble.__cause__
            await trio.lowlevel.checkpoint()  # whoever tries again on NotSent must stay cancellable
            return
        for command, reply in zip(share, replies if len(share) > 1 else [replies], strict=True):
            command.reply = reply

    async def _send_again(self, line: list[_Queued], where: dict[int, Address | None], until: float) -> None:
        """The unfinished commands of one slot, one after the other."""
        router = self._router
        failure: RedisUnavailable | None = None
        for command in line:
            if failure is not None:
                reason = f"not sent: a command before it in slot {command.slot} has failed"
                command.reply = NotSent(failure.address, reason)
                command.reply.__cause__ = failure
                continue
            raw = _FIRST if command.raw else _NONE
            try:
                command.reply = await router.run(
                    command.nature,
                    router.burst(command.payload, 1, raw, keyed=command.slot is not None),
                    until=until,
                    failure=None if command.unlearnt or _is_asked(command) else (where[id(command)], command.reply),
                )
            except RedisUnavailable as trouble:
                command.reply = failure = trouble
            else:
                if _is_unfinished(command):
                    failure = RedisUnavailable(router.options.address, str(command.reply))
                    failure.__cause__ = command.reply


def _as_bytes(keys: Sequence[Any]) -> Sequence[bytes]:
    buffers = (bytes, bytearray, memoryview)
    return [bytes(key) if isinstance(key, buffers) else str(key).encode() for key in keys]


def _slot_without_keys(name: str, args: Sequence[Any]) -> int | None:
    refusal = refusal_of(name)
    if refusal is not None:
        raise refusal
    if combiner_of(name) is not None:
        raise CommandRefused(f"{name} runs on all masters: call it by itself, not in a pipeline")
    return slot_argument_of(name, args)


def _is_unfinished(command: _Queued) -> bool:
    """Whether the command has provably not run, or may be sent again."""
    reply = command.reply
    if command.overtaken:
        return False
    if command.unlearnt and isinstance(reply, redis.exceptions.NoScriptError):
        return True
    return isinstance(reply, Exception) and step_after(reply, command.nature) is not Step.GIVE_UP


def _is_asked(command: _Queued) -> bool:
    """Whether the reply is ASK, which counts at once or never: by now the key may be at the owner again.

    (To write it at the importing node then would make it twice, and stop the migration.)
    """
    reply = command.reply
    return isinstance(reply, redis.exceptions.AskError) and not isinstance(reply, redis.exceptions.MovedError)


def _spell_out(queue: Sequence[_Queued]) -> None:
    """Let what is called by its digest, and has failed, be sent again with its text, where the burst has it.

    The command with the text may have been brought to another node than this one.
    """
    failed = [command for command in queue if command.full == "EVALSHA" and isinstance(command.reply, Exception)]
    if not failed:
        return
    texts = {digest_of(command.args[1]): command.args[1] for command in queue if command.full == "EVAL"}
    for command in failed:
        text = texts.get(command.args[1])
        if text is not None:
            command.unlearnt = isinstance(command.reply, redis.exceptions.NoScriptError)
            command.payload = _compat.pack_command(("EVAL", text, *command.args[2:]))


def _refusal_of(replies: list[Any]) -> Exception | None:
    """Why a transaction was refused as a whole; None if it ran."""
    *queued, results = replies
    if not isinstance(results, Exception):
        return None
    return next((reply for reply in queued if isinstance(reply, Exception)), results)


def _shaped(command: _Queued, options: RedisOptions) -> Any:
    try:
        return shape(command.name, command.reply, command.options, options.protocol)
    except redis.exceptions.RedisError as error:
        return error


_MULTI: Final = _compat.pack_command(("MULTI",))
_EXEC: Final = _compat.pack_command(("EXEC",))
_FIRST: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()
