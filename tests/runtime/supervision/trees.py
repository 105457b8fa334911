"""What the tests of whole trees share: specs, trees, a diary of who came and went."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    ChildView,
    Gates,
    LifecycleEvent,
    LifecycleKind,
    Supervisor,
    Tree,
)

__all__ = ["PLAIN", "Diary", "look", "make", "of_kind", "running", "spec", "stuck_for"]

PLAIN = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)


class Diary:
    """What the children of a test did, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def polite(self, name: str) -> Body:
        return self.slow(name, 0.0)

    def slow(self, name: str, seconds: float) -> Body:
        """Takes `seconds`, shielded, over leaving."""

        async def body(child: Child) -> None:
            self.lines.append(f"+{name}")
            child.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(seconds)
                self.lines.append(f"-{name}")

        return body

    def take(self) -> str:
        said, self.lines = " ".join(self.lines), []
        return said


def stuck_for(seconds: float) -> Body:
    """Does not hear its cancel for so long."""

    async def body(child: Child) -> None:
        child.started()
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    return body


def spec(name: str, body: Callable[[Child], Awaitable[None]], **options: object) -> ChildSpec:
    return ChildSpec(id=name, body=body, **{"backoff": PLAIN, **options})  # type: ignore[arg-type]


def make(*specs: ChildSpec, gates: Gates | None = None, **options: object) -> Tree:
    return Tree(Supervisor("app", specs, **options), gates=gates, seed=1)  # type: ignore[arg-type]


@asynccontextmanager
async def running(tree: Tree) -> AsyncIterator[Tree]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        yield tree
        tree.stop("the test is over")


def look(tree: Tree, path: str) -> ChildView:
    view = tree.snapshot().find(path)
    assert view is not None
    return view


def of_kind(events: list[LifecycleEvent], kind: LifecycleKind) -> list[LifecycleEvent]:
    return [event for event in events if event.kind is kind]
