"""How delivery stands, on the page in a real browser; and what is decided there, with a real database behind it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import define, evolve

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.declaring import declare_groups
from penstock.actors.delivery_view import DeliveryView, DeliveryWatch, RetryView
from penstock.actors.findings import Finding, Severity
from penstock.actors.lease_table import LeaseView
from penstock.actors.letter_view import LetterGroup, LetterOrder
from penstock.actors.letters import LetterDesk
from penstock.actors.loss_table import RecordedLoss
from penstock.actors.member_table import Member, MemberView
from penstock.actors.relay import OutboxView
from penstock.actors.replay_table import Replay, ReplayState
from penstock.actors.store import PostgresStore
from penstock.http.front_end import front_end
from penstock.http.settings import HttpSettings
from penstock.runtime.postgres import Pool, PostgresOptions

pytestmark = pytest.mark.timeout(180)

MOOD = "document.querySelector('#banner').dataset.mood"
BANNER = "document.querySelector('#banner-text').innerText"
DIALOG = "document.querySelector('#dialog')"
DEAD = "document.querySelector('#letters').innerText"


def _sibling(path: str, name: str) -> ModuleType:
    """A module of other tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "database"):
        spec.loader.exec_module(module)
    return module


_actors = _sibling("actors/conftest.py", "_fixtures_of_actors")
cluster, server, migrated, database = _actors.cluster, _actors.server, _actors.migrated, _actors.database


@define
class _Site:
    deployment: Any
    url: str


@pytest.fixture
def serving(make_deployment: Any) -> Callable[..., Any]:
    @asynccontextmanager
    async def serve() -> AsyncIterator[_Site]:
        settings = HttpSettings(bind="127.0.0.1:0", graceful_timeout=0.5)
        deployment = make_deployment(front_ends=lambda made: [front_end(made, settings)])
        async with deployment.running():
            yield _Site(deployment, deployment.tree.snapshot().find("event-system/http").note)

    return serve


THIS = UUID(int=1)


def a_bad_day(now: datetime) -> DeliveryView:
    """Something of everything."""
    member = Member(process=THIS, system="event-system", instance="north-1", host="mill", pid=4711, version="0.1.0")
    group = LetterGroup(
        fingerprint="f" * 16,
        reason="max_deliveries",
        consumer_group="billing",
        count=1204,
        first=now - timedelta(hours=3),
        last=now - timedelta(minutes=2),
        example=17,
        error_class="shop.errors.CardDeclined",
        error_message="the card was declined by the bank " + "again and again " * 20,
        streams=("order-events",),
        event_types=("ORDER_PLACED",),
    )
    trimmed = evolve(group, fingerprint=None, reason="trimmed", error_class=None, error_message=None, count=4)
    silent = evolve(member, process=UUID(int=2), instance="south-1", pid=815)
    return DeliveryView(
        retries=(
            RetryView(
                consumer_group="EVENT_GROUP", stream="EVENT_STREAM", waiting=321, parked=300, attempts=4, oldest=90,
                due_in=12,
            ),
        ),
        dead=1209,
        letters=(group, trimmed),
        orders=(
            LetterOrder(
                id=uuid4(), target="group", rate=50, state="running", total=200, moved=50, filter={}, note=None,
                ordered_by="ann", ordered_at=now, finished_at=None,
            ),
        ),
        replays=(
            Replay(
                system="event-system", stream="order-events", from_id="0-1", to_id="9-1",
                target_stream="order-events:reprocess", total=1000, replayed=250, state=ReplayState.RUNNING,
                ordered_by="bob", ordered_at=now,
            ),
        ),
        losses=(
            RecordedLoss(
                group="EVENT_GROUP", stream="EVENT_STREAM", after_id="1-0", before_id="8-0", entries=7,
                detected_at=now - timedelta(hours=1),
            ),
        ),
        members=(
            MemberView(member=member, started_ago=3600, seen_ago=2),
            MemberView(member=silent, started_ago=99, seen_ago=75),
        ),
        leases=(LeaseView("EVENT_GROUP", "EVENT_STREAM", THIS, 7, 12.0),),
        process=THIS,
    )  # fmt: skip


async def test_outbox_retries_letters_processes_replays_and_losses_are_shown(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good' && {DEAD}.includes('None: every event')")
        assert await page.evaluate("document.querySelector('#replays-panel').hidden") is True
        assert await page.evaluate("document.querySelector('#losses-panel').hidden") is True
        assert "Nothing waits" in await page.text("#outbox")
        site.deployment.waiting = [OutboxView(stream="order-events", waiting=5210, oldest=61.0)]
        site.deployment.delivery.view = a_bad_day(datetime.now(UTC))
        await page.wait_until(f"{DEAD}.includes('CardDeclined')")
        letters = await page.text("#letters")
        assert "1,204" in letters
        assert "max_deliveries · billing · order-events · ORDER_PLACED" in letters
        assert "And 1 more, of other causes." in letters
        assert "5,210" in await page.text("#outbox")
        streams = await page.text("#streams")
        assert "321" in streams
        assert "at north-1" in streams
        members = await page.text("#members")
        assert "mill, pid 4711" in members
        assert "just now" in members
        assert "this page" in members
        assert " ago" in members  # the one that has been silent for more than a minute
        replays = await page.text("#replays")
        assert "50 of 200" in replays
        assert "250 of 1,000" in replays
        assert "EVENT_STREAM, EVENT_GROUP" in await page.text("#losses")
        assert await page.evaluate(BANNER) == (
            "7 events of EVENT_STREAM were trimmed or deleted before EVENT_GROUP was given them; see Losses."
        )
        assert page.complaints == []


async def test_the_banner_says_what_waits_for_somebody(browser: Any, serving: Any) -> None:
    async with serving() as site:
        site.deployment.delivery.view = evolve(a_bad_day(datetime.now(UTC)), losses=())
        page = await browser.open(site.url)
        await page.wait_until(f"{BANNER}.includes('1,209 dead letters wait for a decision')")
        site.deployment.waiting = [
            OutboxView(stream="order-events", waiting=3, oldest=61.0, blocked="WRONGTYPE wrong kind")
        ]
        await page.wait_until(f"{MOOD} === 'warn'")
        assert "order-events does not take what waits in the outbox: WRONGTYPE" in await page.evaluate(BANNER)
        site.deployment.shut_redis()
        await page.wait_until(f"{BANNER}.includes('3 accepted events wait in the outbox')")
        assert "Redis has been away" in await page.evaluate(BANNER)


async def test_what_the_start_up_checks_found_is_shown_until_it_is_mended(browser: Any, serving: Any) -> None:
    async with serving() as site:
        finding = Finding(
            name="eviction",
            where="redis 127.0.0.1:6379",
            severity=Severity.WARN,
            found="evicts <i>keys</i>",
            mend="set noeviction",
        )
        site.deployment.findings = [finding]
        page = await browser.open(site.url)
        await page.wait_until("!document.querySelector('#warnings-panel').hidden")
        shown = await page.text("#warnings")
        assert "redis 127.0.0.1:6379: evicts <i>keys</i>" in shown
        assert "set noeviction" in shown
        site.deployment.findings = []
        await page.wait_until("document.querySelector('#warnings-panel').hidden")


async def test_partitions_of_other_processes_are_no_outage(browser: Any, serving: Any) -> None:
    async with serving() as site:
        page = await browser.open(site.url)
        await page.wait_until(f"{MOOD} === 'good'")
        site.deployment.gates.add("lease G@S:1", shut="north-1 has it")
        await page.wait_until("state.gates.length === 4")
        assert await page.evaluate(MOOD) == "good"
        assert await page.evaluate("document.querySelectorAll('#gates .gate').length") == 3


@pytest.mark.parametrize("width", [360, 768, 1360])
async def test_a_bad_day_fits_its_window(browser: Any, serving: Any, width: int) -> None:
    async with serving() as site:
        site.deployment.delivery.view = a_bad_day(datetime.now(UTC))
        page = await browser.open(site.url, width=width)
        await page.wait_until(f"{DEAD}.includes('CardDeclined')")
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        rights = "[...document.querySelectorAll('#letters button')].map((each) => each.getBoundingClientRect().right)"
        assert max(await page.evaluate(rights)) <= width


# Deciding, with a real database --------------------------------------------------------------------------------------


@define
class _Shop:
    page: Any
    pool: Pool

    async def press(self, selector: str, text: str) -> None:
        """Press the first button with this text inside of `selector`."""
        buttons = f"[...document.querySelectorAll('{selector} button')]"
        found = f"{buttons}.find((each) => each.innerText === '{text}' && !each.disabled)"
        await self.page.wait_until(f"{found} !== undefined")
        await self.page.evaluate(f"{found}.click()")

    async def sql(self, statement: str) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return [tuple(row) for row in await (await connection.execute(statement.encode())).fetchall()]


@pytest.fixture
async def shop(browser: Any, serving: Any, database: PostgresOptions) -> AsyncIterator[_Shop]:
    """Three letters of one cause and one of another, on the page."""
    async with Pool(database) as pool, serving() as site:
        deployment, store = site.deployment, PostgresStore(pool)
        deployment.system.streams["order-events"].group("billing")
        await declare_groups(pool, deployment.system)
        deployment.letters = LetterDesk(pool, deployment.system)
        deployment.delivery = DeliveryWatch(deployment.system, pool, store, deployment.letters, THIS)
        for number, why in enumerate(["no funds", "no funds", "no funds", "bank closed"]):
            facts: dict[str, Any] = {
                "stream": "order-events",
                "entry_id": f"{number + 1}-0",
                "consumer_group": "billing",
                "consumer": "billing-1",
                "reason": "max_deliveries",
                "fields": {"eventType": "ORDER", "data": '{"orderId":"<b>o-1</b>","password":"hunter2"}'},
                "deliveries": 5,
                "event_id": uuid4(),
                "event_type": "ORDER",
            }
            async with store.transaction() as transaction:
                await transaction.bury(DeadLetter.of((ValueError if why == "no funds" else OSError)(why), **facts))
        page = await browser.open(site.url)
        await page.wait_until(f"{DEAD}.includes('no funds') && {DEAD}.includes('bank closed')")
        yield _Shop(page, pool)
        assert page.complaints == []


async def test_letters_of_one_cause_are_replayed_together_after_a_yes(shop: _Shop) -> None:
    await shop.press("#letters tr:first-child", "Replay…")
    await shop.page.wait_until(f"{DIALOG}.open")
    text = await shop.page.text("#dialog")
    assert "Replay 3 dead letters?" in text
    assert "3 events are tried again, with the same event ids" in text
    assert await shop.sql("select count(*) from penstock_dead_letter where status <> 'dead'") == [(0,)]
    await shop.page.evaluate("document.querySelector('#note').value = 'the account was filled'")
    await shop.press("#dialog", "Replay")
    await shop.page.wait_until(
        f"!{DIALOG}.open && document.querySelector('#done').innerText.includes('3 dead letters')"
    )
    assert await shop.sql("select error_message from penstock_dead_letter where status = 'dead'") == [("bank closed",)]
    assert await shop.sql("select target, total, ordered_by, note from penstock_dead_letter_order") == [
        ("group", 3, "page", "the account was filled")
    ]
    await shop.page.wait_until(f"!{DEAD}.includes('no funds')")
    await shop.page.wait_until("document.querySelector('#replays').innerText.includes('0 of 3')")
    await shop.press("#replays", "Stop")
    await shop.page.wait_until(f"{DEAD}.includes('no funds')")
    assert await shop.sql("select state from penstock_dead_letter_order") == [("cancelled",)]


async def test_a_no_changes_nothing_and_a_discard_is_on_record(shop: _Shop) -> None:
    await shop.press("#letters tr:first-child", "Discard…")
    await shop.page.wait_until(f"{DIALOG}.open && {DIALOG}.innerText.includes('Discard 3 dead letters?')")
    await shop.press("#dialog", "Cancel")
    await shop.page.wait_until(f"!{DIALOG}.open")
    assert await shop.sql("select count(*) from penstock_dead_letter where status = 'dead'") == [(4,)]
    await shop.press("#letters tr:first-child", "Discard…")
    await shop.press("#dialog", "Discard")
    await shop.page.wait_until(f"!{DIALOG}.open && !{DEAD}.includes('no funds')")
    assert await shop.sql("select status, settled_by, count(*) from penstock_dead_letter group by 1, 2 order by 1") == [
        ("dead", None, 1),
        ("discarded", "page", 3),
    ]


async def test_a_letter_is_shown_with_its_fields_as_text_and_without_its_secrets(shop: _Shop) -> None:
    await shop.press("#letters tr:first-child", "Show")
    await shop.page.wait_until(f"{DIALOG}.open")
    text = await shop.page.text("#dialog")
    assert "ValueError: no funds" in text
    assert "<b>o-1</b>" in text
    assert "after 5 deliveries" in text
    assert "hunter2" not in await shop.page.evaluate("document.documentElement.outerHTML")
    await shop.press("#dialog", "Discard…")
    await shop.page.wait_until(f"{DIALOG}.innerText.includes('Discard 1 dead letter?')")
    await shop.press("#dialog", "Discard")
    await shop.page.wait_until(f"!{DIALOG}.open")
    assert await shop.sql("select count(*) from penstock_dead_letter where status = 'discarded'") == [(1,)]


async def test_what_cannot_be_done_is_said(shop: _Shop) -> None:
    await shop.press("#letters tr:first-child", "Discard…")
    await shop.page.wait_until(f"{DIALOG}.open")
    await shop.page.evaluate("window.fetch = () => Promise.reject(new TypeError('cut'))")
    await shop.press("#dialog", "Discard")
    await shop.page.wait_until(f"{DIALOG}.innerText.includes('Penstock did not answer')")
    assert await shop.sql("select count(*) from penstock_dead_letter where status = 'dead'") == [(4,)]
