"""Children with a vice, one each: bodies for the specifications of a test.

Each is named for what it does wrong. All but `bad_starter` are ready at once; "well" means that it sleeps, and leaves
when it is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from ..supervision import Body, Child

__all__ = [
    "Misbehaved",
    "bad_starter",
    "deaf",
    "flaky",
    "naughty",
    "slow_leaver",
    "slow_starter",
    "stalled",
    "steady",
    "stuck",
]

MakeError = Callable[[], BaseException]
"""Makes the error to raise, a fresh one each time: an error class, or a function without arguments."""


class Misbehaved(Exception):
    """What children of this module raise unless they are told otherwise."""


def steady() -> Body:
    """No vice: it works well."""
    return slow_starter(0.0)


def naughty(after: float = 1.0, error: MakeError = Misbehaved) -> Body:
    """Starts well, and crashes with `error` so many seconds `after`."""

    async def body(child: Child, *args: object) -> None:
        child.started()
        await trio.sleep(after)
        raise error()

    return body


def bad_starter(times: int, error: MakeError = Misbehaved) -> Body:
    """Raises `error` before it is ready, so many `times`; from then on it works well.

    All its starts count, also those under several lives of its supervisor. (A failing *first* start ends the
    supervisor; to let the first succeed see `flaky`.)
    """
    failures = iter(range(times))

    async def body(child: Child, *args: object) -> None:
        await trio.lowlevel.checkpoint()
        if next(failures, None) is not None:
            raise error()
        child.started()
        await trio.sleep_forever()

    return body


def flaky(pattern: str, after: float = 1.0, error: MakeError = Misbehaved) -> Body:
    """Does in each of its lives what the next word of `pattern` says, and what the last one says in all later lives.

    ========== ================================================
    ``stay``   works well
    ``crash``  starts well, and raises `error` `after` seconds later
    ``return`` starts well, and returns `after` seconds later
    ``fail``   raises `error` before it is ready
    ========== ================================================

    ``flaky("crash fail fail stay")`` crashes once, cannot be restarted twice, and then stays.

    Raises:
        ValueError: there is no word, or another one.
    """
    words = pattern.split()
    unknown = [word for word in words if word not in ("stay", "crash", "return", "fail")]
    if unknown or not words:
        raise ValueError(f"a pattern is some of the words stay, crash, return, fail; not {pattern!r}")
    lives = _then_the_last(words)

    async def body(child: Child, *args: object) -> None:
        word = next(lives)
        await trio.lowlevel.checkpoint()
        if word == "fail":
            raise error()
        child.started()
        await trio.sleep(math.inf if word == "stay" else after)
        if word == "crash":
            raise error()

    return body


def slow_starter(seconds: float) -> Body:
    """Takes so long to be ready; then it works well."""

    async def body(child: Child, *args: object) -> None:
        if seconds:
            await trio.sleep(seconds)
        child.started()
        await trio.sleep_forever()

    return body


def slow_leaver(seconds: float) -> Body:
    """Takes so long to leave once it is cancelled, over a clean-up that is shielded."""

    async def body(child: Child, *args: object) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return body


def stuck(seconds: float) -> Body:
    """Does not hear a cancel for so long after its start, shielded; then it returns. A tree ends only after that."""

    async def body(child: Child, *args: object) -> None:
        child.started()
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    return body


def deaf(times: int = 1) -> Body:
    """Swallows its cancel, so many `times`, and waits again; trio repeats it at each wait, so it leaves in the end."""

    async def body(child: Child, *args: object) -> None:
        child.started()
        for _ in range(times):
            with suppress(trio.Cancelled):  # this is its vice
                await trio.sleep_forever()
        await trio.sleep_forever()

    return body


def stalled(after: float = 0.0) -> Body:
    """Makes progress each second until `after`, and then none, though it lives on. For `ChildSpec.progress_within`."""

    async def body(child: Child, *args: object) -> None:
        child.started()
        with trio.move_on_after(after):
            while True:
                child.progress()
                await trio.sleep(1)
        await trio.sleep_forever()

    return body


def _then_the_last(words: list[str]) -> Iterator[str]:
    yield from words
    while True:
        yield words[-1]
