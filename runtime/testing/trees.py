"""A tree that runs while a block does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from ..supervision import Tree

__all__ = ["running"]


@asynccontextmanager
async def running(tree: Tree) -> AsyncIterator[Tree]:
    """``async with running(tree): …``: it is up, or held, when the block begins; it is stopped in order when it ends.

    The way out blocks until all children are gone, as long as they take. A block that fails or is cancelled stops the
    tree without drains, in order too.

    Raises:
        RuntimeError: the tree was stopped before it was up.
        BaseException: what ended the tree (`StartFailed`, `RestartLimitExceeded`, …; the block is cancelled then), or
            what the block raised; bare, and an exception group only if there were several.
    """
    with _single_bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run, name=f"tree {tree.root.id}")
            if not await tree.ready():
                await trio.lowlevel.checkpoint()  # what ended it is on its way, and cancels this task
                raise RuntimeError(f"the tree {tree.root.id!r} was over before it was ready")
            yield tree
            tree.stop("the test is over")


@contextmanager
def _single_bare() -> Iterator[None]:
    """Let a group of one error out as that error; it keeps its own context."""
    single: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        single = group.exceptions[0]
    while isinstance(single, BaseExceptionGroup) and len(single.exceptions) == 1:
        single = single.exceptions[0]
    if single is not None:
        try:
            raise single
        finally:
            del single  # its traceback holds this frame: no cycle
