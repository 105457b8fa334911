"""A page of a system's own in a real browser: it changes as events are handled, and comes back after a restart."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.http.front_end import front_end
from penstock.http.running import RunningSystem
from penstock.http.settings import HttpSettings
from penstock.runtime.supervision import Supervisor, Tree

sys.path.insert(0, str(Path(__file__).parent / "live_shop"))  # tests are no package

from live_shop import OrderPlaced, system

pytestmark = pytest.mark.timeout(180)

ORDERS, STATE = "document.querySelector('#orders').innerText", "document.querySelector('#state').innerText"


@asynccontextmanager
async def serving(deployment: RunningSystem, bind: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """A front end of `deployment`; the address is its URL."""
    tree = Tree(Supervisor("front", [front_end(deployment, HttpSettings(bind=bind))]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        child = tree.snapshot().find("front/http")
        assert child is not None
        yield child.note
        tree.stop("the test wants it")


@asynccontextmanager
async def another_site() -> AsyncIterator[str]:
    """The URL of a page that is not ours. (On loopback, too: a page from elsewhere is refused by Chromium itself.)"""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<p>Another site")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_number_on_a_page_of_ones_own_is_live(browser: Any) -> None:
    store = MemoryStore()

    def count(_: object) -> list[tuple[int, float]]:
        sold = [each for each in store.effects if each.statement.startswith("insert into sale")]
        return [(len(sold), 9.5 * len(sold))]

    store.answer("select count(*)", count)
    async with virtual(system, store=store) as app:
        async with serving(app.deployment) as url:
            page = await browser.open(f"{url}/dashboard")
            await page.wait_until(f"{ORDERS} === '0' && {STATE} === 'live'", within=30)
            await page.evaluate("window.untouched = true")
            await app.publish("order-events", OrderPlaced("o-1", 9.5))
            await page.wait_until(f"{ORDERS} === '1'", within=30)
            assert page.complaints == []
            async with another_site() as elsewhere:
                other_page = await browser.open(elsewhere)
            path = f"{url.replace('http', 'ws')}/topic/dashboard/orders"
            tried = f"const made = new WebSocket('{path}'); made.onopen = made.onerror = (event) => done(event.type)"
            assert await other_page.evaluate(f"new Promise((done) => {{ {tried} }})") == "error"
            # Among others: that the site that is gone by now had no icon.
            with trio.fail_after(30):
                while not any("Unexpected response code: 403" in each for each in other_page.complaints):
                    await trio.sleep(0.05)
        await page.wait_until(f"{STATE} === 'offline'", within=30)
        await app.publish("order-events", OrderPlaced("o-2", 9.5))
        async with serving(app.deployment, url.removeprefix("http://")):
            await page.wait_until(f"{ORDERS} === '2' && {STATE} === 'live'", within=60)
            await app.publish("order-events", OrderPlaced("o-3", 9.5))
            await page.wait_until(f"{ORDERS} === '3'", within=30)
        assert await page.evaluate("window.untouched") is True
