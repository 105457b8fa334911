"""The dashboard of docs/examples/order_streaming.py in a real browser: live, and back after a kill."""

from __future__ import annotations

import json
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

SYSTEM = Path(__file__).parents[2] / "docs" / "examples" / "order_streaming.py"


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


def call(shop: Installation, path: str, body: Any = None) -> Any:
    content = b"" if body is None else json.dumps(body).encode()
    status, _, answer = shop.request("POST", path, content, {"Content-Type": "application/json"})
    assert status in (200, 201), answer
    return json.loads(answer)


def sell(shop: Installation, quantity: int) -> int:
    items = [{"productId": 3, "quantity": quantity, "price": "200"}]
    order_id = int(call(shop, "/orders", {"userId": 7, "items": items})["orderId"])
    call(shop, f"/orders/{order_id}/complete")
    return order_id


def says(name: str, text: str) -> str:
    return f"document.getElementById({name!r}).innerText === {text!r}"


RANKING = "document.querySelector('#ranking').innerText.split(/\\s+/).join(' ')"


async def test_the_dashboard_moves_as_orders_come(browser: Any, shop: Installation) -> None:
    page = await browser.open(f"http://127.0.0.1:{shop.port}/dashboard/")
    await page.wait_until(f"{says('state', 'live')} && {says('completed', '0')}", within=30)
    order_id = await trio.to_thread.run_sync(sell, shop, 8)
    await page.wait_until(f"{says('completed', '1')} && {says('turnover', '1600.00')}", within=30)
    await page.wait_until(f"{RANKING} === '3 8'", within=30)
    await trio.to_thread.run_sync(call, shop, f"/orders/{order_id}/pay")
    await trio.to_thread.run_sync(call, shop, f"/orders/{order_id}/cancel")
    await page.wait_until(
        f"{says('cancelled', '1')} && {says('income', '1600.00')} && {says('turnover', '0.00')}", within=30
    )
    await page.wait_until(f"{RANKING} === ''", within=30)
    assert page.complaints == []

    await trio.to_thread.run_sync(sell, shop, 2)
    await page.wait_until(f"{says('completed', '2')} && {RANKING} === '3 2'", within=30)
    await trio.to_thread.run_sync(shop.kill)
    await page.wait_until("document.getElementById('state').dataset.live === 'no'", within=30)
    await page.evaluate("document.querySelector('#ranking').replaceChildren()")
    await trio.to_thread.run_sync(shop.start)
    await page.wait_until(f"{says('state', 'live')} && {says('completed', '2')} && {RANKING} === '3 2'", within=60)
    await trio.to_thread.run_sync(sell, shop, 1)
    await page.wait_until(f"{says('completed', '3')} && {RANKING} === '3 3'", within=30)
