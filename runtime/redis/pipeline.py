"""`Pipeline`: many commands in one contiguous burst, as a transaction or not."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

import redis.exceptions

from . import _compat
from .commands import Commands, shape
from .errors import CommandRefused
from .options import RedisOptions
from .routing import block_of, check_shared, command_name

__all__ = ["Pipeline"]


class _Burst(Protocol):
    async def __call__(self, payload: bytes, count: int, raw: frozenset[int]) -> Any: ...


class Pipeline(Commands):
    """Queue commands by calling the command methods (without `await`), then `await execute()`.

    The burst is contiguous on the wire: with `transaction`, it is wrapped in MULTI and EXEC and runs as one step. The
    pipeline can be used again after `execute`. It belongs to one task.
    """

    def __init__(self, options: RedisOptions, burst: _Burst, *, transaction: bool) -> None:
        super().__init__(options)
        self._burst = burst
        self._transaction = transaction
        self._queue: list[tuple[str, bytes, dict[str, Any]]] = []
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
        self._queue.append((name, _compat.pack_command(args), options))
        return self

    def clear(self) -> None:
        """Forget what is queued."""
        self._queue = []
        self._scripts = set()

    def remember_script(self, sha: str) -> bool:
        """Whether an earlier command of this burst carries the script's text; from now on, one does."""
        known = sha in self._scripts
        self._scripts.add(sha)
        return known

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the burst and return the results in the order of the commands.

        With `raise_on_error` the first error reply is raised (the other commands have run, unless in a transaction);
        without, error replies stand in the list as exception objects. A transaction that the server refuses as a whole
        raises the reply that it refused for, in either case. Cancelled: never sent, or outcome unknown.

        Raises NotSent, OutcomeUnknown, redis.exceptions.ResponseError.
        """
        queue = self._queue
        self.clear()
        if not queue:
            return []
        replies = await (self._run_transaction(queue) if self._transaction else self._run(queue))
        results = [_shaped(name, reply, options) for (name, _, options), reply in zip(queue, replies, strict=True)]
        if raise_on_error:
            for number, ((name, _, _), result) in enumerate(zip(queue, results, strict=True), 1):
                if isinstance(result, Exception):
                    result.add_note(f"command {number} of {len(queue)} in the pipeline: {name}")
                    raise result
        return results

    async def _run(self, queue: list[tuple[str, bytes, dict[str, Any]]]) -> list[Any]:
        raw = frozenset(n for n, (_, _, options) in enumerate(queue) if _compat.NEVER_DECODE in options)
        replies = await self._burst(b"".join(payload for _, payload, _ in queue), len(queue), raw)
        return replies if len(queue) > 1 else [replies]

    async def _run_transaction(self, queue: list[tuple[str, bytes, dict[str, Any]]]) -> list[Any]:
        payload = b"".join([_MULTI, *(payload for _, payload, _ in queue), _EXEC])
        never_decode = any(_compat.NEVER_DECODE in options for _, _, options in queue)
        if never_decode and self.options.decode_responses:
            raise CommandRefused("a command with a binary reply (DUMP) in a transaction with decode_responses")
        *queued, results = await self._burst(payload, len(queue) + 2, frozenset())
        if isinstance(results, Exception):
            refusals = [reply for reply in queued if isinstance(reply, Exception)]
            raise (refusals[0] if refusals else results) from results
        if results is None:
            raise redis.exceptions.WatchError("the server discarded the transaction")
        return list(results)


_MULTI = _compat.pack_command(("MULTI",))
_EXEC = _compat.pack_command(("EXEC",))


def _shaped(name: str, reply: Any, options: dict[str, Any]) -> Any:
    try:
        return shape(name, reply, options)
    except redis.exceptions.RedisError as error:
        return error
