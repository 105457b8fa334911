"""The page of a real system, as an operator sees it: an order that is refused, tried again, and discarded."""

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

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MOOD = "document.querySelector('#banner').dataset.mood"
DEAD = "document.querySelector('#letters').innerText"


@pytest.fixture
def shop() -> Iterator[Installation]:
    directory = Path(tempfile.mkdtemp(prefix="penstock-it-"))
    directory.chmod(0o755)
    made = Installation(directory, arguments=("run", f"{EXAMPLES / 'shop.py'}:system"))
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


async def press(page: Any, selector: str, text: str) -> None:
    buttons = f"[...document.querySelectorAll('{selector} button')]"
    found = f"{buttons}.find((each) => each.innerText === '{text}' && !each.disabled)"
    await page.wait_until(f"{found} !== undefined")
    await page.evaluate(f"{found}.click()")


async def test_a_dead_letter_is_seen_and_replayed_on_the_page(browser: Any, shop: Installation) -> None:
    page = await browser.open(f"http://127.0.0.1:{shop.port}")
    await page.wait_until(f"{MOOD} === 'good' && {DEAD}.includes('None: every event')", within=20)
    members = await page.text("#members")
    assert f"pid {shop.process.pid if shop.process else 0}" in members
    assert "Nothing waits" in await page.text("#outbox")
    done = shop.command(
        "publish", "order-events", "--type", "ORDER_PLACED", "--data", '{"orderId": "free-1", "price": -1}'
    )
    assert done.returncode == 0, done.stderr
    await page.wait_until(f"{DEAD}.includes('order free-1 has a negative price')", within=20)
    await page.wait_until("document.querySelector('#banner-text').innerText.includes('1 dead letter waits')")
    await press(page, "#letters", "Show")
    await page.wait_until("document.querySelector('#dialog').open")
    dialog = await page.text("#dialog")
    assert "Permanent" in dialog
    assert "in pay" in dialog  # its traceback
    await press(page, "#dialog", "Replay…")
    await page.wait_until("document.querySelector('#dialog').innerText.includes('Replay 1 dead letter?')")
    await press(page, "#dialog", "Replay")
    await page.wait_until("!document.querySelector('#dialog').open", within=10)

    def replayed() -> bool:
        audit = shop.sql("select action, by from penstock_dead_letter_audit order by id")
        return [action for action, _ in audit] == ["ordered", "moved", "died"] and audit[0][1] == "page"

    with trio.fail_after(30):
        while not await trio.to_thread.run_sync(replayed):
            await trio.sleep(0.1)
    # It broke the same rule again, and is dead again: the same letter, with one replay more.
    await page.wait_until(f"{DEAD}.includes('negative price')", within=20)
    assert shop.sql("select count(*), max(replays) from penstock_dead_letter") == [(1, 1)]
    await press(page, "#letters", "Discard…")
    await press(page, "#dialog", "Discard")
    await page.wait_until(f"{DEAD}.includes('None: every event')", within=20)
    assert shop.sql("select status, settled_by from penstock_dead_letter") == [("discarded", "page")]
    assert page.complaints == []
