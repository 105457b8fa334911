"""The page in a real browser: what it shows, that it is true, and that it says so when it does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from attrs import define, evolve

from penstock.actors.cluster_view import ClusterView, NodeView
from penstock.actors.delivery_view import DeliveryView, RetryView
from penstock.actors.queue_lists import QueueView, TakenBy
from penstock.http.front_end import front_end
from penstock.http.settings import HttpSettings

pytestmark = pytest.mark.timeout(180)

MOOD = "document.querySelector('#banner').dataset.mood"
BANNER = "document.querySelector('#banner-text').innerText"


@define
class _Site:
    deployment: Any
    url: str


@pytest.fixture
def serving(make_deployment: Any) -> Callable[..., Any]:
    @asynccontextmanager
    async def serve(bind: str = "127.0.0.1:0", queues: Iterable[str] = ()) -> AsyncIterator[_Site]:
        settings = HttpSettings(bind=bind, graceful_timeout=0.5)
        deployment = make_deployment(front_ends=lambda made: [front_end(made, settings)])
        for name in queues:
            deployment.system.queue(name)
        async with deployment.running():
            yield _Site(deployment, deployment.tree.snapshot().find("event-system/http").note)

    return serve


def _row(path: str) -> str:
    return f"document.querySelector('#tree tr[data-path=\"{path}\"]')?.innerText ?? ''"


async def test_a_healthy_system_is_shown_whole(browser: Any, serving: Any) -> None:
    async with serving() as site:
        site.deployment.access.add("PUT", "/admin/api/v1/event/access/category", 409, 0.012)
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good' && document.querySelectorAll('#access tbody td').length > 1")
        assert await page.evaluate(BANNER) == "All is well: 10 children at work, 3 gates open."
        tree = await page.text("#tree")
        for child in ("event-system", "redis-server", "pid 4711", "listener-2", "EVENT_GROUP@EVENT_STREAM", site.url):
            assert child in tree
        assert (await page.text("#gates")).count("open") == 3
        streams = await page.text("#streams")
        assert "EVENT_STREAM" in streams
        assert "1,204" in streams
        access = await page.text("#access")
        assert "PUT" in access
        assert "409" in access
        assert page.complaints == []


async def test_the_nodes_of_a_cluster_are_shown_where_there_is_one(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        assert await page.evaluate("document.querySelector('#cluster-panel').hidden") is True
        site.deployment.nodes = ClusterView(
            state="ok",
            observed_at=trio.current_time(),
            nodes=(
                NodeView(id="a", address="redis-1:7001", ranges=((0, 16383),), streams=("EVENT_STREAM",)),
                NodeView(id="b", address="redis-2:7002", role="replica", master_id="a", failed=True),
            ),
        )
        await page.wait_until("!document.querySelector('#cluster-panel').hidden")
        rows = "[...document.querySelectorAll('#cluster tbody tr')].map((row) => row.innerText.split('\\t'))"
        assert await page.evaluate(rows) == [
            ["redis-1:7001", "master", "16,384", "EVENT_STREAM"],
            ["redis-2:7002", "replica, failed", "", ""],
        ]
        await page.wait_until(f"{MOOD} === 'warn'")
        assert await page.evaluate(BANNER) == (
            "Running, but Redis node redis-2:7002 has failed: until it is back, the cluster can bear less."
        )
        well = evolve(site.deployment.nodes, nodes=site.deployment.nodes.nodes[:1])
        site.deployment.nodes = well
        await page.wait_until(f"{MOOD} === 'good'")
        assert page.complaints == []


async def test_work_queues_are_shown_where_there_are_any(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        assert await page.evaluate("document.querySelector('#queues-panel').hidden") is True
    made = datetime.now(UTC) - timedelta(minutes=5)
    retry = RetryView(
        consumer_group="queue reports", stream="reports", waiting=3, parked=0, attempts=2, oldest=9, due_in=4
    )
    async with serving(queues=("reports", "mails")) as site:
        taken = (TakenBy("w-1", 2, 0.5), TakenBy("w-2", 1, 90.0))
        site.deployment.queued = [
            QueueView(name="reports", waiting=1200, returned=4, taken=taken, oldest=made),
            QueueView(name="mails", waiting=0, returned=0, taken=(), oldest=None),
        ]
        site.deployment.delivery.view = DeliveryView(retries=(retry,))
        page = await browser.open(site.url)
        await page.wait_until("!document.querySelector('#queues-panel').hidden")
        rows = "[...document.querySelectorAll('#queues tbody tr')].map((row) => row.innerText.split('\\t'))"
        await page.wait_until(f"({rows})[0][4] === '3'")
        first, second = await page.evaluate(rows)
        assert (first[:2], first[2][:6], first[3:]) == (["reports", "1,204"], "5 min ", ["3", "3", "1"])
        assert second == ["mails", "0", "", "0", "0", "none"]
        told = await page.evaluate("document.querySelector('#queues tbody tr td:last-child').title")
        assert told == "w-1: 2 jobs\nw-2: 1 job, no sign of life"
        site.deployment.shut_redis()
        await page.wait_until("document.querySelector('#queues-age').innerText.includes('Redis is away')")
        assert page.complaints == []


async def test_an_outage_is_one_sentence_and_its_end_is_seen(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        site.deployment.shut_redis()
        await page.wait_until(f"{MOOD} === 'bad' && {BANNER}.includes('2 children are held')", within=5)
        banner = await page.evaluate(BANNER)
        assert banner.startswith("Redis has been away for ")
        assert banner.endswith(
            " s: connection refused at 127.0.0.1:6379; 2 children are held; the system keeps answering."
        )
        assert "shut" in await page.text("#gates")
        held = await page.evaluate(_row("event-system/actors/EVENT_GROUP@EVENT_STREAM/listener-1"))
        assert "held" in held
        assert "waits for Redis" in held
        assert "Redis away" in await page.evaluate("document.title")
        await page.wait_until(f"/away for [2-9] s/.test({BANNER})")  # the seconds run on
        spoken = await page.evaluate("document.querySelector('#spoken').textContent")
        assert "Redis has been away: connection refused" in spoken  # and are not read out each time
        site.deployment.gates["redis"].open()
        await page.wait_until(f"{MOOD} === 'good'", within=5)
        again = await page.evaluate(_row("event-system/actors/EVENT_GROUP@EVENT_STREAM/listener-1"))
        assert "running" in again


async def test_with_the_database_away_the_access_events_are_marked_as_old(browser: Any, serving: Any) -> None:
    async with serving() as site:
        site.deployment.access.add("GET", "/seen/before", 200, 0.001)
        page = await browser.open(site.url)
        await page.wait_until("document.querySelector('#access').innerText.includes('/seen/before')")
        site.deployment.gates["postgres"].shut("connection refused at 127.0.0.1:5432")
        await page.wait_until("document.querySelector('#access-age').innerText.includes('the database is away')")
        assert "/seen/before" in await page.text("#access")
        assert "PostgreSQL has been away" in await page.evaluate(BANNER)


async def test_a_crash_is_shown_with_its_reason_and_without_its_secret(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        site.deployment.crashes["producer"].set()
        await page.wait_until(f"{MOOD} === 'warn'", within=5)
        assert "producer crashed and is started again in" in await page.evaluate(BANNER)
        assert "backoff" in await page.evaluate(_row("event-system/actors/producer"))
        whole = await page.evaluate("document.documentElement.outerHTML")
        assert "producer lost redis://root:***@" in whole
        assert "hunter2" not in whole


async def test_a_page_without_news_says_so_and_comes_back_by_itself(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
    await page.wait_until(f"{MOOD} === 'lost'", within=10)
    assert "No news from Penstock for " in await page.evaluate(BANNER)
    assert "reconnecting" in await page.evaluate(BANNER)
    assert await page.text("#connection-text") == "connection lost"
    async with serving(bind=site.url.removeprefix("http://")):
        await page.wait_until(f"{MOOD} === 'good'", within=20)


async def test_what_comes_from_outside_is_text_and_never_markup(browser: Any, serving: Any) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    async with serving() as site:
        site.deployment.access.add("GET", f"/{evil}", 200, 0.001)
        page = await browser.open(site.url)
        await page.wait_until("document.querySelector('#access').innerText.includes('onerror')")
        site.deployment.gates["redis"].shut(evil)
        await page.wait_until(f"{BANNER}.includes('onerror')")
        assert "owned" not in await page.evaluate("document.title")
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0


async def test_nothing_is_fetched_from_anywhere_else_and_inline_scripts_are_refused(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        assert page.requested
        assert [url for url in page.requested if not url.startswith(site.url)] == []
        assert page.complaints == []
        await page.evaluate(
            "{ const made = document.createElement('script'); made.textContent = \"document.title='owned'\";"
            " document.body.append(made) }"
        )
        assert "owned" not in await page.evaluate("document.title")


@pytest.mark.parametrize("width", [360, 768, 1360])
async def test_the_page_fits_its_window(browser: Any, serving: Any, width: int) -> None:
    async with serving() as site:
        site.deployment.access.add("GET", "/" + "a-long-path" * 30, 200, 0.001)
        page = await browser.open(site.url, width=width)
        await page.wait_until("document.querySelector('#access').innerText.includes('a-long-path')")
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("dark", [False, True])
async def test_text_can_be_read_in_the_light_and_in_the_dark(browser: Any, serving: Any, dark: bool) -> None:
    """WCAG AA: a contrast of 4.5 between each text and what is behind it."""
    async with serving() as site:
        site.deployment.access.add("GET", "/x", 500, 0.001)
        site.deployment.access.add("GET", "/x", 404, 0.001)
        page = await browser.open(site.url, dark=dark)
        await page.wait_until(f"{MOOD} === 'good' && document.querySelectorAll('#access tbody tr').length > 1")
        site.deployment.crashes["producer"].set()
        site.deployment.shut_redis()
        await page.wait_until(f"{MOOD} === 'bad' && document.querySelector('[data-tone=warn]') !== null")
        assert await page.evaluate(_CONTRASTS) == []


_CONTRASTS = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('.spoken, noscript, script, [aria-hidden=true]')) continue;
    const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
    const opacity = Number(getComputedStyle(element).opacity);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const words = element.textContent.trim().slice(0, 30);
    if (contrast < 4.5 || opacity < 1) poor.push(`${words}: ${contrast.toFixed(2)}, opacity ${opacity}`);
  }
  return poor;
})()"""
