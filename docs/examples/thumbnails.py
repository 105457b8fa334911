"""Thumbnails: a work queue that loses no job. `penstock run docs/examples/thumbnails.py:system`

POST /images ──> the list thumbnails ──> four workers in each process ──> table thumbnail
"""

from __future__ import annotations

import os
from pathlib import Path

import trio
from attrs import field, frozen, validators

from penstock.actors.event import event
from penstock.actors.handling import Context, Permanent
from penstock.actors.system import System
from penstock.http.routes import Blueprint, RunningSystem, TrioResponse, event_of, json_reply, routes


@event("RESIZE_IMAGE")
@frozen
class ResizeImage:
    image: str
    width: int = field(default=200, validator=validators.gt(0))
    seconds: float = 0.0  # what stands here for the work


system = System("thumbnails", migrations=Path(__file__).parent / "thumbnails_migrations")
thumbnails = system.queue("thumbnails", workers=4, timeout=60.0)


@thumbnails.on(ResizeImage)
async def resize(job: ResizeImage, context: Context) -> None:
    if job.image.endswith(".txt"):
        raise Permanent(f"{job.image} is no image")
    await trio.sleep(job.seconds)
    await context.connection.execute(
        "insert into thumbnail (image, width, pid) values (%s, %s, %s)", (job.image, job.width, os.getpid())
    )


@routes(system)
def site(running: RunningSystem) -> Blueprint:
    made = Blueprint("site", __name__)

    @made.post("/images")
    async def upload() -> TrioResponse:
        job_id = await running.enqueue("thumbnails", await event_of(ResizeImage))
        return json_reply({"jobId": str(job_id)}, 202)

    return made
