"""The start-up checks: as tables, on a real Valkey, and behind the gate in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from attrs import evolve, frozen

from penstock.actors import checking
from penstock.actors.channels import Channel
from penstock.actors.checking import AGAIN, Checks, look_at_redis
from penstock.actors.checks import _append_only as append_only
from penstock.actors.checks import _eviction as eviction
from penstock.actors.checks import _version as version
from penstock.actors.checks import declared_findings, skew_finding
from penstock.actors.event import event
from penstock.actors.findings import Finding, Severity
from penstock.actors.probes import RedisProbe, Unhealthy
from penstock.actors.rights import Needs, access_findings
from penstock.actors.settings import CheckSettings
from penstock.actors.system import System
from penstock.runtime.postgres import PostgresUnavailable
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.supervision import Gates
from penstock.runtime.testing.redis import InProcessRedis

GOOD, WARN, REFUSE = Severity.GOOD, Severity.WARN, Severity.REFUSE


@pytest.mark.parametrize(
    ("info", "severity"),
    [
        ({"redis_version": "7.2.4", "valkey_version": "9.0.1"}, GOOD),
        ({"redis_version": "8.6.0"}, GOOD),
        ({"redis_version": "6.2.0"}, GOOD),
        ({"redis_version": "6.0.16"}, REFUSE),
        ({"redis_version": "5.0.7"}, REFUSE),
    ],
)
def test_versions(info: dict[str, str], severity: Severity) -> None:
    assert version(info, "here").severity is severity


@pytest.mark.parametrize(
    ("policy", "limit", "severity"),
    [
        ("noeviction", 1, GOOD),
        ("allkeys-lru", 1, REFUSE),
        ("allkeys-random", 0, WARN),
        ("volatile-lru", 1, WARN),
    ],
)
def test_eviction_policies(policy: str, limit: int, severity: Severity) -> None:
    assert eviction({"maxmemory_policy": policy, "maxmemory": limit}, "here").severity is severity


@pytest.mark.parametrize(("enabled", "severity"), [(1, GOOD), (0, WARN)])
def test_the_append_only_file(enabled: int, severity: Severity) -> None:
    assert append_only({"aof_enabled": enabled}, "here").severity is severity


@pytest.mark.parametrize(
    ("off", "severity", "words"),
    [(0.9, GOOD, ""), (-0.9, GOOD, ""), (2.5, WARN, "2.5 s ahead of"), (-4, WARN, "4.0 s behind")],
)
def test_clocks(off: float, severity: Severity, words: str) -> None:
    now = datetime(2026, 5, 4, tzinfo=UTC)
    finding = skew_finding("here", now + timedelta(seconds=off), now, now)
    assert finding.severity is severity
    assert words in finding.found


def test_the_way_to_a_slow_server_is_no_skew() -> None:
    now = datetime(2026, 5, 4, tzinfo=UTC)
    finding = skew_finding("here", now + timedelta(seconds=3), now, now + timedelta(seconds=4))
    assert finding.severity is GOOD


@event("ORDERED")
@frozen
class _Ordered:
    number: int


@event("REFUNDED")
@frozen
class _Refunded:
    number: int


@pytest.mark.parametrize(
    ("orders", "refunds", "shared"),
    [
        ([], [], "any event"),
        ([_Ordered], [], "any event"),
        ([_Ordered], [_Refunded, _Ordered], "ORDERED"),
        ([_Ordered], [_Refunded], None),
    ],
)
def test_a_group_on_two_streams_is_a_warning_where_they_may_carry_the_same_event(
    orders: list[type], refunds: list[type], shared: str | None
) -> None:
    system = System("shop")
    for key, types in {"orders": orders, "refunds": refunds}.items():
        system.stream(key, events=types).group("audit")
    found = declared_findings(system)
    assert [(each.name, each.where, each.severity) for each in found] == ([("groups", "audit", WARN)] if shared else [])
    assert all(
        f"orders and refunds have a group of this name and may both carry {shared};" in each.found for each in found
    )


@pytest.mark.parametrize("key", ["orders", "{shop}:orders", "EVENT_STREAM", "a:b"])
def test_ordinary_keys_have_company_in_their_slot(key: str) -> None:
    system = System("shop")
    system.stream(key, partitions=1)
    assert declared_findings(system) == []


def test_a_key_that_nothing_can_stand_beside_is_a_warning() -> None:
    system = System("shop")
    system.stream("}orders")
    (finding,) = declared_findings(system)
    assert (finding.name, finding.severity) == ("slots", WARN)


# Rights


async def _findings(redis: Redis, valkey: Any, *rules: str, key: str = "orders", **more: Any) -> list[Finding]:
    await redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
    async with Redis(evolve(valkey.options, username="app", password="secret")) as link:
        return await access_findings(link, Needs(**{"keys": [key], **more}), "here")


def _mended(finding: Finding, kind: str = "") -> list[str]:
    """The rules that a finding says to set, without what it offers instead; those that begin with `kind`."""
    rules, _, _ = finding.mend.removeprefix("ACL SETUSER … ").partition(" (or ")
    return [rule for rule in rules.split() if rule.startswith(kind)]


async def test_a_user_with_all_rights_may(redis: Redis, valkey: Any) -> None:
    (finding,) = await _findings(redis, valkey, "~orders", "~{orders}:*", "+@stream", "+eval", "+evalsha")
    assert finding.severity is GOOD


async def test_what_a_user_may_not_is_named_and_how_to_mend_it(redis: Redis, valkey: Any) -> None:
    rules = ("~orders", "~{orders}:*", "+@stream", "-xclaim", "-xgroup|setid")
    (finding,) = await _findings(redis, valkey, *rules)
    assert finding.severity is REFUSE
    assert finding.found == "our user may not run XCLAIM, XGROUP SETID, EVAL, EVALSHA on orders"
    assert "+xclaim +xgroup|setid +eval" in finding.mend


async def test_who_may_not_show_dead_letters_is_warned(redis: Redis, valkey: Any) -> None:
    rules = ("~orders", "~{orders}:*", "+@stream", "+@scripting")
    (finding,) = await _findings(redis, valkey, *rules, mirrors=["orders:dead-letter"])
    assert finding.severity is WARN
    assert "XADD, XDEL on orders:dead-letter" in finding.found
    (finding,) = await _findings(redis, valkey, *rules, "~orders:dead-letter", mirrors=["orders:dead-letter"])
    assert finding.severity is GOOD


@pytest.mark.parametrize(
    ("kind", "names"),
    [("keys", ["{orders}:0", "orders", "}orders"]), ("mirrors", ["x:dead-letter"]), ("queues", ["jobs"])],
)
async def test_who_does_what_it_says_has_all_rights(redis: Redis, valkey: Any, kind: str, names: list[str]) -> None:
    (finding,) = await _findings(redis, valkey, **{"keys": [], kind: names})
    assert finding.severity is (WARN if kind == "mirrors" else REFUSE)
    for rules in (
        _mended(finding),
        [*_mended(finding, "~"), *finding.mend.partition("(or ")[2].partition(")")[0].split()],
    ):
        (again,) = await _findings(redis, valkey, *rules, **{"keys": [], kind: names})
        assert again.severity is GOOD


QUEUE_RULES = ("~orders", "~{orders}:*", "+@stream", "+@scripting", "~{jobs}:*", "+@list", "+@sortedset", "+time")


async def test_what_a_user_may_not_do_with_a_queue_is_named(redis: Redis, valkey: Any) -> None:
    (finding,) = await _findings(redis, valkey, *QUEUE_RULES, queues=["jobs"])
    assert finding.severity is GOOD
    (finding,) = await _findings(redis, valkey, *QUEUE_RULES, "-lmove", "-zadd", "-time", queues=["jobs"])
    assert finding.severity is REFUSE
    assert finding.found == "our user may not run LMOVE, ZADD, TIME on jobs (work queues)"
    assert "~{jobs}:* +@list +@sortedset +@scripting +time (or +lmove +zadd +time)" in finding.mend
    assert await redis.keys("*") == []


@pytest.mark.parametrize("command", ["LPUSH", "BLMOVE"])
async def test_what_changes_a_queue_in_any_form_is_asked_for_too_and_changes_nothing(
    redis: Redis, valkey: Any, command: str
) -> None:
    await redis.lpush("{jobs}:waiting", "1")
    (finding,) = await _findings(redis, valkey, *QUEUE_RULES, queues=["jobs"])
    assert finding.severity is GOOD
    (finding,) = await _findings(redis, valkey, *QUEUE_RULES, f"-{command}", queues=["jobs"])
    assert finding.found == f"our user may not run {command} on jobs (work queues)"
    assert await redis.keys("*") == [b"{jobs}:waiting"]
    assert await redis.lrange("{jobs}:waiting", 0, -1) == [b"1"]


def _channels() -> list[Channel]:
    async def hear(message: Any) -> None: ...

    heard, pattern = Channel("news", handlers=[hear]), Channel("chat:*", pattern=True, handlers=[hear])
    return [heard, pattern, Channel("orders-told")]


async def test_a_channel_that_a_user_has_no_right_to_is_a_warning_and_nobody_hears_us_ask(
    redis: Redis, valkey: Any
) -> None:
    rules = ("~orders", "~{orders}:*", "+@stream", "+@scripting")
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe("*")
        (finding,) = await _findings(redis, valkey, *rules, channels=_channels())
        assert finding.severity is WARN
        assert "SUBSCRIBE, PSUBSCRIBE, PUBLISH on chat:*, news, orders-told" in finding.found
        assert finding.mend.startswith("ACL SETUSER … &chat:* &news &orders-told +@pubsub (or +subscribe")
        (finding,) = await _findings(redis, valkey, *rules, *_mended(finding), channels=_channels())
        assert finding.severity is GOOD
        (finding,) = await _findings(redis, valkey, *rules, "+@pubsub", "&news", "&chat:*", channels=_channels())
        assert "may not run PUBLISH on orders-told" in finding.found
        assert await pubsub.get(0) is None


async def test_who_may_not_ask_for_the_time_is_looked_at_all_the_same(redis: Redis, valkey: Any) -> None:
    rules = ("~orders", "~{orders}:*", "+@stream", "+@scripting", "+info")
    await redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
    options = evolve(valkey.options, username="app", password="secret")
    found = await look_at_redis(RedisProbe(options, ["orders"]), Needs(keys=["orders"], queues=["jobs"]))
    assert {each.name: each.severity for each in found}["clock"] is WARN
    assert any("LMOVE" in each.found and each.severity is REFUSE for each in found)


async def test_a_key_that_is_not_ours_is_noticed(redis: Redis, valkey: Any) -> None:
    (finding,) = await _findings(redis, valkey, "~other", "+@all")
    assert finding.severity is REFUSE
    assert "XADD, XREADGROUP" in finding.found


@pytest.mark.parametrize("exists", [False, True])
async def test_asking_changes_nothing(redis: Redis, valkey: Any, exists: bool) -> None:
    if exists:
        await redis.xgroup_create("orders", "payment", id="0", mkstream=True)
        for number in range(5):
            await redis.xadd("orders", {"n": number})
        await redis.xreadgroup("payment", "c", {"orders": ">"}, count=2)
    before = await redis.execute_command("XINFO", "STREAM", "orders", "FULL") if exists else None
    keys = await redis.keys()
    await access_findings(redis, Needs(keys=["orders"], mirrors=["orders:dead-letter", "orders"]), "here")
    assert await redis.keys() == keys
    if exists:
        assert await redis.execute_command("XINFO", "STREAM", "orders", "FULL") == before


async def test_a_round_on_a_real_server(redis: Redis, valkey: Any) -> None:
    await redis.config_set("maxmemory", 100_000_000)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = await look_at_redis(RedisProbe(valkey.options, ["orders"]), Needs(keys=["orders"]))
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", 0)
    severities = {finding.name: finding.severity for finding in found}
    assert severities == {
        "version": GOOD,
        "eviction": REFUSE,
        "append-only": WARN,
        "clock": GOOD,
        "access": GOOD,
    }


# Behind the gate


@frozen
class _Told:
    """A round with a given outcome, and how often it was made."""

    found: list[Finding]
    rounds: list[float]

    async def __call__(self) -> list[Finding]:
        await trio.lowlevel.checkpoint()
        self.rounds.append(trio.current_time())
        return list(self.found)


def _checks(
    monkeypatch: pytest.MonkeyPatch, found: list[Finding], allow: tuple[str, ...] = ()
) -> tuple[Checks, _Told, Gates]:
    gates = Gates()
    gates.add("redis", settle=0.0, shut="not probed yet")
    told = _Told(found, [])
    checks = Checks(System("shop"), RedisProbe(RedisOptions(), []), gates["redis"], allow=allow)
    monkeypatch.setattr(checks, "_probe", trio.lowlevel.checkpoint)
    monkeypatch.setattr(checks, "_look", told)
    return checks, told, gates


BAD = Finding(name="eviction", where="here", severity=REFUSE, found="allkeys-lru", mend="noeviction")


async def test_what_would_lose_events_is_refused_until_it_is_mended(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, told, _ = _checks(monkeypatch, [BAD])
    for _ in range(2):
        with pytest.raises(Unhealthy, match="here: allkeys-lru; noeviction"):
            await checks()
    told.found[:] = [evolve(BAD, severity=GOOD)]
    await checks()
    assert len(told.rounds) == 3
    assert checks.warnings == []


async def test_what_is_allowed_is_only_a_warning(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, _, _ = _checks(monkeypatch, [BAD], allow=("eviction",))
    await checks()
    assert checks.warnings == [BAD]


async def test_while_all_is_well_it_looks_again_every_few_minutes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, told, gates = _checks(monkeypatch, [])
    await checks()
    gates["redis"].open()
    for _ in range(70):
        await checks()
        await trio.sleep(10)
    assert len(told.rounds) == 3
    told.found[:] = [BAD]
    await trio.sleep(AGAIN)
    with pytest.raises(Unhealthy):
        await checks()


async def test_a_server_that_cannot_be_looked_at_is_looked_at_another_time_and_that_is_told_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(checking.log, "warning", lambda event, **_: warnings.append(event))
    checks, told, _ = _checks(monkeypatch, [])
    hang: Callable[[], Awaitable[Any]] = trio.sleep_forever
    monkeypatch.setattr(checks, "_look", hang)
    await checks()
    await checks()
    assert warnings == ["start-up checks not made; they are tried with each probe"]
    monkeypatch.setattr(checks, "_look", told)
    await checks()
    assert len(told.rounds) == 1


async def test_the_databases_clock_is_compared_too(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, _, _ = _checks(monkeypatch, [])
    asked = []

    async def late() -> datetime:
        await trio.lowlevel.checkpoint()
        asked.append(trio.current_time())
        return datetime.now(UTC) - timedelta(seconds=30)

    for _ in range(100):
        await checks.look_at_database("db:5432", late)
        await trio.sleep(6)
    (warning,) = checks.warnings
    assert (warning.name, warning.where, warning.severity) == ("clock", "db:5432", WARN)
    assert "30.0 s behind" in warning.found
    assert len(asked) == 2


async def test_a_database_that_is_away_is_no_finding(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, _, _ = _checks(monkeypatch, [])

    async def away() -> datetime:
        await trio.lowlevel.checkpoint()
        raise PostgresUnavailable("refused", address="db:5432")

    await checks.look_at_database("db:5432", away)
    assert checks.warnings == []


async def test_the_in_process_redis_answers_them(autojump_clock: trio.testing.MockClock) -> None:
    needs = Needs(keys=["orders"], queues=["jobs"], channels=_channels())
    async with InProcessRedis() as server:
        found = await look_at_redis(RedisProbe(RedisOptions(), [], server.connect), needs)
    assert {finding.name for finding in found} == {"version", "eviction", "append-only", "clock", "access"}
    assert all(finding.severity is GOOD for finding in found if finding.name in ("version", "access"))


def test_what_may_be_allowed_is_a_check() -> None:
    CheckSettings(allow=["clock"])
    with pytest.raises(ValueError, match="'clocks' is none"):
        CheckSettings(allow=["clocks"])
