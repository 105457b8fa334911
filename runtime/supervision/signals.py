"""Signals as orders to a tree: the first one stops it in order, the second one leaves out the graces."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from .tree import Tree

__all__ = ["stop_on_signals"]


async def stop_on_signals(tree: Tree, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Stop `tree` at SIGTERM or SIGINT (Ctrl-C): in order at the first, without graces at the second and any further.

    Runs until it is cancelled; `task_status.started()` is called when signals are taken. Only in the main thread, as
    all handling of signals in Python::

        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signals, tree)
            await tree.run()
            nursery.cancel_scope.cancel()

    Raises:
        RuntimeError: it is not the main thread.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        cut = False
        async for number in signals:
            tree.stop(signal.Signals(number).name, cut=cut)
            cut = True
