"""A page of a system's own in a real browser: it changes as events are handled, and comes back after a restart."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))  # tests are no package

from installation import Installation

pytestmark = pytest.mark.timeout(240)

SYSTEM = Path(__file__).parent / "live_shop" / "live_shop.py"
ORDERS, STATE = "document.querySelector('#orders').innerText", "document.querySelector('#state').innerText"


@pytest.fixture
def shop() -> Iterator[Installation]:
    directory = Path(tempfile.mkdtemp(prefix="penstock-it-"))
    directory.chmod(0o755)
    made = Installation(directory, arguments=("run", f"{SYSTEM}:system"))
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def order(shop: Installation, number: int) -> None:
    body = f'{{"eventType": "ORDER_PLACED", "data": {{"orderId": "o-{number}", "price": 9.5}}}}'.encode()
    answer = shop.request(
        "POST", "/api/v1/streams/order-events/events", body, headers={"Content-Type": "application/json"}
    )
    assert answer[0] == 202, answer


async def test_a_number_on_a_page_of_ones_own_is_live(browser: Any, shop: Installation) -> None:
    page = await browser.open(f"http://127.0.0.1:{shop.port}/dashboard")
    await page.wait_until(f"{ORDERS} === '0' && {STATE} === 'live'", within=30)
    await page.evaluate("window.untouched = true")
    await trio.to_thread.run_sync(order, shop, 1)
    await page.wait_until(f"{ORDERS} === '1'", within=30)
    assert page.complaints == []

    other_site = await browser.open("data:text/html,<title>Another site</title>")
    path = f"ws://127.0.0.1:{shop.port}/topic/dashboard/orders"
    ended = f"new Promise(done => {{ const s = new WebSocket('{path}'); s.onopen = s.onerror = e => done(e.type) }})"
    assert await other_site.evaluate(ended) == "error"

    assert await trio.to_thread.run_sync(shop.terminate, 30.0) == 0
    await page.wait_until(f"{STATE} === 'offline'", within=30)
    await trio.to_thread.run_sync(shop.start)
    await page.wait_until(f"{ORDERS} === '1' && {STATE} === 'live'", within=60)
    await trio.to_thread.run_sync(order, shop, 2)
    await page.wait_until(f"{ORDERS} === '2'", within=30)
    assert await page.evaluate("window.untouched") is True
