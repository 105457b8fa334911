"""`Pipeline`: many commands in one contiguous burst, as a transaction or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import redis.exceptions
import trio
from attrs import frozen

from . import _compat
from .commands import Commands, shape
from .errors import CommandRefused
from .options import RedisOptions
from .retry import READS, SCRIPTS, Retry, passes
from .routing import block_of, check_shared, command_name

__all__ = ["Pipeline", "raise_first_error"]


class _Burst(Protocol):
    """Sends `payload` in one piece; brings its `count` replies, of which those in `raw` are not decoded."""

    async def __call__(self, payload: bytes, count: int, raw: frozenset[int]) -> list[Any]: ...


@frozen(repr=False)  # attrs' repr looks up a global `_compat` of its own
class _Command:
    name: str
    payload: bytes
    options: dict[str, Any]


class Pipeline(Commands):
    """Queue commands by calling the command methods (without `await`), then `await execute()`.

    The burst is contiguous on the wire: with `transaction`, it is wrapped in MULTI and EXEC and runs as one step. The
    pipeline can be used again after `execute`. It belongs to one task.

    A burst that failed is sent again, for `options.retry_for` seconds, when none of it was sent, when the server
    refused all of it for a reason that passes, or when all of it only reads.

    Args:
        options: of the client.
        burst: the client's way of sending.
        transaction: whether to wrap it in MULTI and EXEC.
        retry: makes the attempts of one call: (its start, whether it only reads); None: there is one attempt.
    """

    def __init__(
        self,
        options: RedisOptions,
        burst: _Burst,
        *,
        transaction: bool,
        retry: Callable[[float, bool], Retry] | None = None,
    ) -> None:
        super().__init__(options)
        self._burst = burst
        self._transaction = transaction
        self._retry = retry
        self._queue: list[_Command] = []
        self._scripts: set[str] = set()

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

    def execute_command(self, *args: Any, **options: Any) -> Pipeline:
        """Queue one command; what every command method ends in.

        Raises CommandRefused (commands that block or change the connection) and redis.exceptions.DataError.
        """
        name = command_name(args)
        check_shared(name, args)
        if block_of(name, args) is not None:
            raise CommandRefused(f"{name} blocks, and would hold up everything behind the pipeline: call it by itself")
        self._queue.append(_Command(name, _compat.pack_command(args), options))
        return self

    @property
    def names(self) -> list[str]:
        """The commands that are queued, in capitals."""
        return [command.name for command in self._queue]

    def clear(self) -> None:
        """Forget what is queued."""
        self._queue = []
        self._scripts = set()

    def remember_script(self, sha: str, keys: Sequence[Any] = ()) -> bool:
        """Whether an earlier command of this burst carries the script's text; from now on, one does.

        `keys` are the call's: they decide where it goes, which makes no difference on one server.
        """
        known = sha in self._scripts
        self._scripts.add(sha)
        return known

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the burst and return the results in the order of the commands.

        With `raise_on_error` the first error reply is raised (the other commands have run, unless in a transaction);
        without, error replies stand in the list as exception objects. A transaction that the server refuses as a whole
        raises the reply that it refused for, in either case. Cancelled: never sent, or outcome unknown.

        Raises NotSent, OutcomeUnknown, redis.exceptions.ResponseError; with `decode_responses` also UnicodeDecodeError
        for what is no text. Of a transaction that is all of EXEC's reply: it has run, and its results are lost.
        """
        queue = self._queue
        self.clear()
        if not queue:
            return []
        replies = await self._run(queue)
        if self._transaction:
            replies = _of_transaction(replies)
        results = [self._shaped(command, reply) for command, reply in zip(queue, replies, strict=True)]
        if raise_on_error:
            raise_first_error([command.name for command in queue], results)
        return results

    async def _run(self, queue: list[_Command]) -> list[Any]:
        """The replies, those of MULTI and EXEC too, of the last attempt."""
        payload, count, raw = self._packed(queue)
        if self._retry is None:
            return await self._burst(payload, count, raw)
        retry = self._retry(trio.current_time(), all(command.name in READS for command in queue))
        retry.scripted = any(command.name in SCRIPTS for command in queue)
        while True:
            failure: Exception | None
            try:
                replies = await self._burst(payload, count, raw)
            except redis.exceptions.RedisError as error:
                replies, failure = [], error
            else:
                failure = self._refusal(replies, scripted=retry.scripted)
                if failure is None:
                    return replies
            wait = retry.wait_after(failure, trio.current_time())
            if wait is None and not replies:
                raise failure
            if wait is None:
                return replies
            await trio.sleep(wait)

    def _packed(self, queue: list[_Command]) -> tuple[bytes, int, frozenset[int]]:
        raw = frozenset(n for n, command in enumerate(queue) if _compat.NEVER_DECODE in command.options)
        payloads = [command.payload for command in queue]
        if not self._transaction:
            return b"".join(payloads), len(queue), raw
        if raw and self.options.decode_responses:
            raise CommandRefused("a command with a binary reply (DUMP) in a transaction with decode_responses")
        return b"".join([_MULTI, *payloads, _EXEC]), len(queue) + 2, frozenset()

    def _shaped(self, command: _Command, reply: Any) -> Any:
        try:
            return shape(command.name, reply, command.options, self.options.protocol)
        except (redis.exceptions.RedisError, UnicodeDecodeError) as error:
            return error

    def _refusal(self, replies: list[Any], *, scripted: bool) -> Exception | None:
        """Why nothing of the burst has run, if that will pass by itself."""
        if self._transaction:
            refused = isinstance(replies[-1], redis.exceptions.ExecAbortError) and not isinstance(replies[0], Exception)
            reasons = [reply for reply in replies[1:-1] if isinstance(reply, Exception)]
        else:
            reasons = [reply for reply in replies if isinstance(reply, Exception)]
            refused = len(reasons) == len(replies)
        return (
            reasons[0] if refused and reasons and all(passes(reason, scripted=scripted) for reason in reasons) else None
        )


_MULTI = _compat.pack_command(("MULTI",))
_EXEC = _compat.pack_command(("EXEC",))


def raise_first_error(names: Sequence[str], results: Sequence[Any]) -> None:
    """Raise the first error among the results of these commands, if there is one, with a note that says which it is."""
    for number, (name, result) in enumerate(zip(names, results, strict=True), 1):
        if isinstance(result, Exception):
            result.add_note(f"command {number} of {len(names)} in the pipeline: {name}")
            raise result


def _of_transaction(replies: list[Any]) -> list[Any]:
    """The commands' replies; raises the reason for which there are none."""
    *queued, results = replies
    if isinstance(results, Exception):
        refusals = [reply for reply in queued if isinstance(reply, Exception)]
        if refusals:
            raise refusals[0] from results
        raise results
    if results is None:
        raise redis.exceptions.WatchError("the server discarded the transaction")
    return list(results)
