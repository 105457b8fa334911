"""What the tests of work queues share: a job, a system with one queue, and looks at its lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.queue_lists import QueueLists
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment

QUEUE = "thumbnails"
GROUP = f"queue {QUEUE}"
PLACE = f"actors/{GROUP}"


@event("RESIZE_IMAGE")
@frozen
class ResizeImage:
    number: int


@event("CROP_IMAGE")
@frozen
class CropImage:
    number: int


Handler = Callable[[ResizeImage, Context], Awaitable[None]]


async def nothing_more(job: ResizeImage, context: Context) -> None:
    await trio.lowlevel.checkpoint()


def resizing(handler: Handler = nothing_more, **options: Any) -> System:
    """A system whose queue writes the number of each job, after `handler` has had it."""
    system = System("images")
    system.gate("disk", trio.lowlevel.checkpoint)
    thumbnails = system.queue(QUEUE, **options)

    @thumbnails.on(ResizeImage)
    async def resize(job: ResizeImage, context: Context) -> None:
        await handler(job, context)
        await context.connection.execute("insert", [job.number])

    return system


def done(store: MemoryStore) -> list[int]:
    return sorted(effect.values[0] for effect in store.effects)


def lists_of(app: VirtualDeployment[Any]) -> QueueLists:
    return QueueLists(app.deployment.client(), QUEUE)


def restarts(app: VirtualDeployment[Any]) -> dict[str, int]:
    return {view.path: view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts}
