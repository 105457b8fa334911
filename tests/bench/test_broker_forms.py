"""The bench of the broker's forms runs, and counts what is lost. How fast they are is not tested."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))

from bench_broker_forms import Loss, latencies, losses, open_client, server, throughput
from broker_forms import FORMS, Channel, SafeQueue

FEW = Namespace(messages=40, single=5, workers=2, lost_of=60, away=0.05, work=0.02)


async def few(url: str) -> dict[str, Loss]:
    found: dict[str, Loss] = {}
    async with open_client(url) as redis:
        for form in FORMS:
            assert await throughput(form, redis, FEW) > 0
            assert len(await latencies(form, redis, FEW)) == FEW.single
        for form in (SafeQueue(), Channel()):
            found[form.name] = await losses(form, redis, url, FEW, signal.SIGKILL)
    return found


def test_a_killed_consumer_loses_nothing_of_a_safe_queue_and_what_a_channel_told_meanwhile() -> None:
    with server() as url:
        found = trio.run(few, url)
    assert found["list, BLMOVE"].lost == 0
    assert found["pub/sub"].lost >= FEW.lost_of // 3
