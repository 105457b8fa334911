"""Another plan for a supervisor that runs (lines 97 to 104 of the list)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import PLAIN, child, handles, states

from penstock.runtime.supervision import (
    CUT,
    AlreadyPresent,
    AutoShutdown,
    Backoff,
    Body,
    Changes,
    ChildIsStuck,
    ChildSpec,
    Decay,
    Ending,
    Gates,
    Ignore,
    Intensity,
    InvalidSpec,
    Kind,
    LifecycleKind,
    NotFound,
    NotRunning,
    Plan,
    Pool,
    Restart,
    RestartLimitExceeded,
    StillRunning,
    Strategy,
    Supervisor,
    Tree,
    UnknownGate,
)
from penstock.runtime.supervision.messages import Begin, GateTurned, Reload, RestartChild, Status
from penstock.runtime.testing import Diary, Misbehaved, flaky, naughty, running, slow_leaver

Mode = AutoShutdown
NEVER, ANY, ALL = Mode.NEVER, Mode.ANY_SIGNIFICANT, Mode.ALL_SIGNIFICANT


# 97: flags -----------------------------------------------------------------------------------------------------------


async def test_otp_097_a_change_of_flags_touches_no_child(autojump_clock: MockClock) -> None:
    """Flags that change in a running tree hold at once, and no child is stopped or started for it."""
    diary = Diary()
    specs = [child(name, diary.of(name)) for name in "abc"]
    root = Supervisor("app", specs)
    new = Plan(specs, Strategy.REST_FOR_ONE, Intensity(1, 3600.0), ANY, stagger=0.5)
    async with running(Tree(root)) as tree:
        before = handles(root)
        diary.take()
        with tree.subscribe() as events:
            assert root.preview(new) == Changes(flags=("strategy", "intensity", "auto_shutdown", "stagger"))
            assert root.plan != new
            changes = await root.reload(new)
            assert changes == Changes(flags=("strategy", "intensity", "auto_shutdown", "stagger"))
            await trio.sleep(100)
            told = [(event.kind, event.path, event.reason) for event in events.drain()]
        assert told == [(LifecycleKind.PLAN_CHANGED, "app", "flags: strategy, intensity, auto_shutdown, stagger")]
        assert root.plan == new
        assert handles(root) == before
        assert diary.take() == ""


@pytest.mark.parametrize(
    ("strategy", "came_and_went"),
    [
        (Strategy.ONE_FOR_ONE, "!b +b"),
        (Strategy.ONE_FOR_ALL, "!b -c -a +a +b +c"),
        (Strategy.REST_FOR_ONE, "!b -c +b +c"),
    ],
)
@pytest.mark.parametrize("before", Strategy)
async def test_otp_097_a_new_strategy_holds_for_the_next_crash(
    before: Strategy, strategy: Strategy, came_and_went: str, autojump_clock: MockClock
) -> None:
    """A strategy that was changed decides who goes down with the next crash."""
    diary = Diary()
    specs = [child("a", diary.of("a")), child("b", diary.of("b", flaky("crash stay", 5.0))), child("c", diary.of("c"))]
    root = Supervisor("app", specs, strategy=before)
    async with running(Tree(root)):
        await root.reload(Plan(specs, strategy))
        diary.take()
        await trio.sleep_until(100)
        assert diary.take() == came_and_went


@pytest.mark.parametrize("limit", [Intensity(1, 3600.0), Decay(1.5, half_life=3600.0)])
async def test_otp_097_a_new_intensity_holds_for_the_next_crash(
    limit: Intensity | Decay, autojump_clock: MockClock
) -> None:
    """A restart budget that was changed is the one that the next crashes are held against; children live on."""
    specs = [child("a"), child("b", naughty(after=10.0))]  # crashes at 10 and 21
    root = Supervisor("app", specs, intensity=Intensity(0))
    tree = Tree(root)

    async def change() -> None:
        await tree.ready()
        await root.reload(Plan(specs, intensity=limit))
        await trio.sleep_until(20)
        assert states(root) == {"a": "running", "b": "running"}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        with pytest.raises(RestartLimitExceeded):
            await tree.run()
    assert trio.current_time() == 21


async def test_otp_097_what_was_spent_of_the_budget_stays_spent(autojump_clock: MockClock) -> None:
    """A tighter intensity counts the restarts that were made before it came."""
    specs = [child("b", naughty(after=10.0))]
    root = Supervisor("app", specs, intensity=Intensity(5, 3600.0))
    tree = Tree(root)

    async def change() -> None:
        await trio.sleep_until(35)  # after the crashes at 10, 21 and 33
        await root.reload(Plan(specs, intensity=Intensity(3, 3600.0)))
        assert tree.snapshot().root.restarts_left == 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        with pytest.raises(RestartLimitExceeded, match="more than 3 restarts in 3600 s"):
            await tree.run()
    assert trio.current_time() == 47


@pytest.mark.parametrize("after", Strategy)
@pytest.mark.parametrize("before", Strategy)
def test_core_097_a_new_strategy_in_the_middle_of_a_restart_leaves_nobody_behind(
    before: Strategy, after: Strategy
) -> None:
    """A strategy that changes while a restart waits: whoever was to come back comes back."""
    play = begun("a", "b", "c", strategy=before)
    play.crash("b")
    plan = play.core.plan
    play.tell(Reload("ticket", Plan(plan.children, after, plan.intensity, stagger=0.0)))
    assert play.answers["ticket"] == Changes(flags=("strategy",) if before is not after else ())
    play.advance(1.0)
    assert [play.status(name) for name in "abc"] == [Status.RUNNING] * 3


# 98: what cannot work ------------------------------------------------------------------------------------------------


async def _nobody(child: object) -> None:
    raise AssertionError("never started")


def _raises() -> Any:
    raise LookupError("no such table")


BAD: dict[str, Callable[[], Any]] = {
    "two of one id": lambda: [child("a"), child("b"), child("b")],
    "no body": lambda: [child("a"), {"id": "b"}],
    "no id": lambda: [child("a"), {"body": _nobody}],
    "an unknown key": lambda: [child("a"), {"id": "b", "body": _nobody, "restart_type": "permanent"}],
    "a bad field": lambda: [child("a"), {"id": "b", "body": _nobody, "stop_within": -1}],
    "not a specification": lambda: [child("a"), "b"],
    "significant under never": lambda: [child("a"), child("b", restart=Restart.TEMPORARY, significant=True)],
    "an unknown gate": lambda: [child("a"), child("b", requires=("redis",))],
    "a bad strategy": lambda: Plan([child("a")], strategy="one_for_two"),  # type: ignore[arg-type]
    "a bad intensity": lambda: Plan([child("a")], intensity=3),  # type: ignore[arg-type]
    "a bad auto_shutdown": lambda: Plan([child("a")], auto_shutdown="any"),  # type: ignore[arg-type]
    "a bad stagger": lambda: Plan([child("a")], stagger=-1),
    "nonsense": lambda: 42,
    "nothing": lambda: None,
    "a builder that raises": _raises,
}


@pytest.mark.parametrize("what", BAD)
async def test_otp_098_a_reload_of_what_cannot_work_fails_as_a_start_does_and_changes_nothing(
    what: str, autojump_clock: MockClock
) -> None:
    """A bad specification or flag: the reload raises the error of a start, and children, specs and flags stay."""
    diary = Diary()
    good = [child("a", diary.of("a")), child("b", diary.of("b"))]
    make: list[Callable[[], Any]] = [BAD[what]]

    def builder() -> Any:
        return make[0]()

    with pytest.raises(Exception) as at_start:  # noqa: PT011 - which one is what this is about
        await Tree(Supervisor("app", builder)).run()

    make[0] = lambda: good
    root = Supervisor("app", builder, strategy=Strategy.REST_FOR_ONE)
    async with running(Tree(root)) as tree:
        before, plan = handles(root), root.plan
        make[0] = BAD[what]
        with tree.subscribe() as events:
            with pytest.raises(type(at_start.value)) as at_reload:
                await root.reload()
            await trio.sleep(100)
            assert list(events.drain()) == []
        assert type(at_reload.value) is type(at_start.value)
        assert str(at_reload.value) == str(at_start.value)
        assert root.plan is plan
        assert root.plan.children == tuple(good)
        assert handles(root) == before
        make[0] = lambda: good
        assert await root.reload() == Changes()
        assert diary.take() == "+a +b"


@pytest.mark.parametrize("what", [name for name in BAD if name != "an unknown gate"])
async def test_otp_098_a_preview_of_what_cannot_work_fails_in_the_same_way(
    what: str, autojump_clock: MockClock
) -> None:
    """What a reload would be refused for, its preview is refused for."""
    root = Supervisor("app", [child("a")])
    async with running(Tree(root)):
        with pytest.raises((InvalidSpec, LookupError)) as at_preview:
            root.preview(BAD[what])
        with pytest.raises(type(at_preview.value)) as at_reload:
            await root.reload(BAD[what])
        assert str(at_preview.value) == str(at_reload.value)


async def test_otp_098_a_preview_names_an_unknown_gate_as_the_reload_does(autojump_clock: MockClock) -> None:
    """Also what the tree lacks, and not the plan, is told by the preview."""
    root = Supervisor("app", [child("a")])
    async with running(Tree(root)):
        with pytest.raises(UnknownGate, match="'redis'"):
            await root.reload(BAD["an unknown gate"])
        with pytest.raises(UnknownGate, match="'redis'"):
            root.preview(BAD["an unknown gate"])


async def test_otp_098_the_error_of_a_failed_reload_is_typed_and_names_builder_and_value(
    autojump_clock: MockClock,
) -> None:
    """The reload's error tells which builder of which supervisor made what."""
    root = Supervisor("app", [child("a")])

    def nonsense() -> Any:
        return 42

    async with running(Tree(root)):
        with pytest.raises(InvalidSpec, match=r"the builder .*nonsense of supervisor 'app' made no plan: .*42"):
            await root.reload(nonsense)


# 99: new ones --------------------------------------------------------------------------------------------------------


async def test_otp_099_new_children_are_known_and_not_started_until_asked(autojump_clock: MockClock) -> None:
    """A reload's new child has its specification and its place, and no task until restart_child."""
    diary = Diary()
    old = [child("a", diary.of("a")), child("c", diary.of("c"))]
    new = child("b", diary.of("b"))
    root = Supervisor("app", old)
    async with running(Tree(root)):
        assert await root.reload(Plan([old[0], new, old[1]])) == Changes(added=("b",))
        await trio.sleep(100)
        assert diary.take() == "+a +c"
        assert states(root) == {"a": "running", "b": "ended", "c": "running"}
        assert root.which_child("b").handle is None
        assert root.get_childspec("b") == new
        assert (root.count_children().specs, root.count_children().active) == (3, 2)
        with pytest.raises(AlreadyPresent):
            await root.start_child(new)
        handle = await root.restart_child("b")
        assert handle is not None
        assert handle.incarnation == 1
        assert states(root)["b"] == "running"
        diary.take()
    assert diary.take() == "-c -b -a"  # it stands where the plan has it


@pytest.mark.parametrize("restart", Restart)
async def test_otp_099_a_new_child_that_nobody_started_can_be_deleted(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A child that a reload made known is stopped like any other: it may be terminated, and deleted."""
    root = Supervisor("app", [child("a")])
    async with running(Tree(root)):
        await root.reload(Plan([child("a"), child("b", restart=restart)]))
        await root.terminate_child("b")
        if restart is not Restart.TEMPORARY:  # whose specification a terminate deletes
            await root.delete_child("b")
        assert states(root) == {"a": "running"}
        assert await root.start_child(child("b")) is not None


async def test_otp_099_new_children_start_with_the_supervisor_s_next_life(autojump_clock: MockClock) -> None:
    """When the supervisor itself is started again, it begins with the plan that it was given last."""
    inner = Supervisor("inner", [child("a", flaky("crash stay", 5.0))], intensity=Intensity(0))
    outer = Supervisor("app", [inner.spec(backoff=PLAIN)])
    async with running(Tree(outer)):
        await inner.reload(Plan([*inner.plan.children, child("b")], intensity=Intensity(0)))
        assert states(inner) == {"a": "running", "b": "ended"}
        await trio.sleep_until(100)
        assert states(inner) == {"a": "running", "b": "running"}


@pytest.mark.parametrize("strategy", Strategy)
async def test_otp_099_a_new_child_comes_up_with_a_restart_of_its_group(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """A group restart starts all of the group, also who was never asked for (OTP starts stopped ones likewise)."""
    crashing = child("a", flaky("crash stay", 5.0))
    root = Supervisor("app", [crashing], strategy=strategy)
    async with running(Tree(root)):
        await root.reload(Plan([crashing, child("b")], strategy))
        await trio.sleep_until(100)
        assert states(root) == {"a": "running", "b": "ended" if strategy is Strategy.ONE_FOR_ONE else "running"}


# 100: changed and removed ones ---------------------------------------------------------------------------------------


async def test_otp_100_a_changed_child_runs_on_and_is_restarted_as_its_new_specification_says(
    autojump_clock: MockClock,
) -> None:
    """A changed body is what the next restart runs; until then the old one does."""
    diary = Diary()
    old = child("a", diary.of("old", naughty(after=5.0)))
    new = child("a", diary.of("new"), name="anna", requires=())
    root = Supervisor("app", [old])
    async with running(Tree(root)) as tree:
        handle = root.which_child("a").handle
        assert await root.reload(Plan([new])) == Changes(changed=("a",))
        assert root.get_childspec("a") == new
        await trio.sleep_until(4.9)
        assert root.which_child("a").handle is handle
        assert tree.whereis("anna") is None
        assert diary.take() == "+old"
        await trio.sleep_until(6.1)
        assert diary.take() == "!old +new"
        assert tree.whereis("anna") is root.which_child("a").handle


async def test_otp_100_a_changed_pause_holds_for_the_next_crash(autojump_clock: MockClock) -> None:
    """A changed backoff is what the next crash waits for."""
    body = flaky("crash stay", 5.0)
    root = Supervisor("app", [child("a", body)])
    async with running(Tree(root)):
        await root.reload(Plan([child("a", body, backoff=Backoff(minimum=7.0, maximum=7.0, jitter=0.0))]))
        await trio.sleep_until(11.9)
        assert states(root) == {"a": "backoff"}
        await trio.sleep_until(12.1)
        assert states(root) == {"a": "running"}


@pytest.mark.parametrize(
    ("restart", "ending", "expected"),
    [
        (Restart.TRANSIENT, "return", {"a": "ended"}),
        (Restart.TRANSIENT, "crash", {"a": "running"}),
        (Restart.TEMPORARY, "return", {}),
        (Restart.TEMPORARY, "crash", {}),
        (Restart.PERMANENT, "return", {"a": "running"}),
    ],
)
async def test_otp_100_a_changed_restart_type_holds_for_the_next_end(
    restart: Restart, ending: str, expected: dict[str, str], autojump_clock: MockClock
) -> None:
    """Whether a child is started again is for the specification to say that holds when it ends."""
    other = Restart.PERMANENT if restart is not Restart.PERMANENT else Restart.TRANSIENT
    body = flaky(f"{ending} stay", 5.0)
    root = Supervisor("app", [child("a", body, restart=other)])
    async with running(Tree(root)):
        await root.reload(Plan([child("a", body, restart=restart)]))
        await trio.sleep_until(100)
        assert states(root) == expected


async def test_otp_100_changed_stop_limits_hold_for_the_next_stop(autojump_clock: MockClock) -> None:
    """A stop goes by the limits of the present specification, not by those that the child was started with."""
    body = slow_leaver(3.0)
    root = Supervisor("app", [child("a", body, stop_within=10.0), child("b", body, stop_within=1.0)])
    async with running(Tree(root)):
        await root.reload(Plan([child("a", body, stop_within=1.0), child("b", body, stop_within=10.0)]))
        await root.terminate_child("b")
        assert trio.current_time() == 3
        with pytest.raises(ChildIsStuck, match="within 1 s"):
            await root.terminate_child("a")
        assert trio.current_time() == 4


async def test_otp_100_a_changed_drain_holds_for_the_next_stop(autojump_clock: MockClock) -> None:
    """A drain limit that a reload brought is granted; one that it took away, or cut, is not."""
    root = Supervisor("app", [child("a"), child("b", drain_within=5.0), child("c", drain_within=5.0)])
    async with running(Tree(root)):
        await root.reload(
            Plan([child("a", drain_within=2.0), child("b"), child("c", drain_within=5.0, stop_within=CUT)])
        )
        await root.terminate_child("a")
        assert trio.current_time() == 2
        await root.terminate_child("b")
        await root.terminate_child("c")
        assert trio.current_time() == 2


async def test_otp_100_a_removed_child_runs_on_as_before(autojump_clock: MockClock) -> None:
    """A child that a reload leaves out lives on, is restarted, stands behind the planned ones, and goes by calls."""
    diary = Diary()
    a, b, c = (child(name, diary.of(name)) for name in "abc")
    gone = child("gone", diary.of("gone", flaky("crash stay", 5.0)))
    root = Supervisor("app", [a, gone, b])
    async with running(Tree(root)):
        handle = root.which_child("gone").handle
        assert await root.reload(Plan([a, b])) == Changes(removed=("gone",))
        assert root.which_child("gone").handle is handle
        assert diary.take() == "+a +gone +b"
        await trio.sleep_until(100)
        assert diary.take() == "!gone +gone"
        assert states(root) == {"a": "running", "b": "running", "gone": "running"}
        with pytest.raises(StillRunning):
            await root.delete_child("gone")
        await root.terminate_child("gone")
        assert states(root)["gone"] == "ended"
        await root.delete_child("gone")
        with pytest.raises(NotFound):
            root.which_child("gone")
        assert await root.start_child(c) is not None
        diary.take()
    assert diary.take() == "-c -b -a"


async def test_otp_100_a_removed_child_is_not_there_in_the_supervisor_s_next_life(autojump_clock: MockClock) -> None:
    """The plan that was given last is what the next life begins with."""
    crashing = child("a", flaky("crash stay", 5.0))
    inner = Supervisor("inner", [crashing, child("gone")], intensity=Intensity(0))
    outer = Supervisor("app", [inner.spec(backoff=PLAIN)])
    async with running(Tree(outer)):
        await inner.reload(Plan([crashing], intensity=Intensity(0)))
        assert states(inner) == {"a": "running", "gone": "running"}
        await trio.sleep_until(100)
        assert states(inner) == {"a": "running"}


async def test_otp_100_a_new_order_holds_for_the_next_stop(autojump_clock: MockClock) -> None:
    """The order of the new plan is the order of starts and stops from then on; nobody is moved for it."""
    diary = Diary()
    specs = [child(name, diary.of(name)) for name in "abc"]
    root = Supervisor("app", specs)
    async with running(Tree(root)):
        assert await root.reload(Plan([specs[2], specs[0], specs[1]])) == Changes(is_reordered=True)
        assert list(states(root)) == ["c", "a", "b"]
        assert diary.take() == "+a +b +c"
    assert diary.take() == "-b -a -c"


async def test_otp_100_a_gate_that_a_changed_child_requires_holds_from_its_next_start_on(
    autojump_clock: MockClock,
) -> None:
    """A child runs on though its new specification requires a gate that is shut; when it ends it is held."""
    gates = Gates()
    gate = gates.add("redis", settle=0.0, shut="no route")
    body = flaky("crash stay", 5.0)
    root = Supervisor("app", [child("a", body)])
    async with running(Tree(root, gates=gates)):
        handle = root.which_child("a").handle
        await root.reload(Plan([child("a", body, requires=("redis",))]))
        await trio.sleep_until(4.9)
        assert root.which_child("a").handle is handle
        assert states(root) == {"a": "running"}
        await trio.sleep_until(50)
        assert states(root) == {"a": "held"}
        gate.open()
        await trio.sleep_until(60)
        assert states(root) == {"a": "running"}
        gate.shut("no route again")
        await trio.sleep_until(61)
        assert states(root) == {"a": "held"}


@pytest.mark.parametrize("before", [10.0, 30.0, float("inf")])
def test_core_100_a_changed_limit_of_a_hold_holds_for_the_hold_that_is_under_way(before: float) -> None:
    """A hold that lasts goes by the limit that holds now, be it longer or shorter than the one that it began with."""
    play = begun("a")
    play.tell(GateTurned("redis", False, "no route"))
    play.tell(Reload("first", Plan([spec("b", requires=("redis",), hold_within=before)])))
    play.tell(RestartChild("start", "b"))
    play.advance(5.0)
    play.tell(Reload("second", Plan([spec("b", requires=("redis",), hold_within=20.0)])))
    assert play.answers["second"] == Changes(changed=("b",))
    play.advance(14.9)
    assert play.finished is None
    play.advance(0.1)
    assert play.finished is not None
    assert "held for 20 s" in str(play.finished.error)


def test_core_100_a_supervisor_that_is_still_starting_is_not_reloaded() -> None:
    """A reload before all children are up is refused, for it could not say who is new; nothing changes."""
    play = Play([spec("a")])
    play.slow_starters.add("a")
    play.tell(Begin())
    play.tell(Reload("ticket", Plan([])))
    assert isinstance(play.answers["ticket"], NotRunning)
    assert [child.id for child in play.core.plan.children] == ["a"]


# 101: ignore ---------------------------------------------------------------------------------------------------------


async def test_otp_101_a_builder_that_says_ignore_changes_nothing(autojump_clock: MockClock) -> None:
    """Ignore in a reload: it is handed to the caller, and nothing changes."""
    diary = Diary()
    ignoring = False

    def builder() -> Plan:
        if ignoring:
            raise Ignore("nothing new")
        return Plan([child("a", diary.of("a"))], Strategy.REST_FOR_ONE)

    root = Supervisor("app", builder)
    async with running(Tree(root)) as tree:
        before, plan, ignoring = handles(root), root.plan, True
        with tree.subscribe() as events:
            with pytest.raises(Ignore, match="nothing new"):
                await root.reload()
            with pytest.raises(Ignore, match="nothing new"):
                root.preview()
            await trio.sleep(100)
            assert list(events.drain()) == []
        assert root.plan is plan
        assert handles(root) == before
        assert diary.take() == "+a"


# 102: pools ----------------------------------------------------------------------------------------------------------


def written(diary: list[str], word: str) -> Body:
    async def body(child: Any, *args: Any) -> None:
        diary.append(" ".join([word, *args]))
        child.started()
        await trio.sleep_forever()

    return body


async def test_otp_102_the_template_of_a_pool_can_be_changed(autojump_clock: MockClock) -> None:
    """A pool's new template is what children are started from then on; those that are there run on."""
    diary: list[str] = []
    old = child("kind", written(diary, "old"), restart=Restart.TRANSIENT, stop_within=1.0)
    new = child("kind", written(diary, "new"), restart=Restart.TEMPORARY, stop_within=2.0)
    pool = Pool("pool", old)
    async with running(Tree(pool)):
        first = await pool.start_child("1")
        assert first is not None
        assert await pool.reload(new) == Changes(changed=("kind",))
        second = await pool.start_child("2")
        assert second is not None
        assert diary == ["old 1", "new 2"]
        assert first.is_alive
        assert pool.template == new
        assert [pool.get_childspec(handle).stop_within for handle in (first, second)] == [1.0, 2.0]


async def test_otp_102_a_child_of_a_pool_is_restarted_from_the_template_that_it_was_started_from(
    autojump_clock: MockClock,
) -> None:
    """Ours: a child keeps its template for life (OTP goes over to the new one at its next restart)."""
    old = child("kind", flaky("crash stay", 5.0))
    pool = Pool("pool", old)
    async with running(Tree(pool)):
        await pool.start_child()
        await pool.reload(child("kind", restart=Restart.TEMPORARY))
        await trio.sleep_until(100)
        [entry] = pool.which_children()
        assert entry.handle is not None
        assert (entry.state, entry.handle.incarnation) == ("running", 2)


@pytest.mark.parametrize(
    ("templates", "named"),
    [((), "none"), ((child("one"), child("two")), "one, two"), ([child("one")] * 2, "one, one"), (42, "42")],
)
async def test_otp_102_the_template_of_a_pool_can_be_neither_removed_nor_doubled(
    templates: Any, named: str, autojump_clock: MockClock
) -> None:
    """No template, or two, are refused with the error of a start; the pool goes on with the one that it has."""
    with pytest.raises(InvalidSpec) as at_start:
        Pool("pool", templates)
    assert str(at_start.value) == f"a pool takes exactly one template, a ChildSpec; it was given {named}"
    pool = Pool("pool", child("kind"))
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        with pytest.raises(InvalidSpec) as at_reload:
            await pool.reload(templates)
        assert str(at_reload.value) == str(at_start.value)
        assert handle.is_alive
        assert pool.template.id == "kind"
        assert await pool.start_child() is not None


async def test_otp_102_a_bad_template_is_refused_and_the_pool_goes_on(autojump_clock: MockClock) -> None:
    """A template that cannot work fails the reload as it fails a start."""
    pool = Pool("pool", child("kind"))
    async with running(Tree(pool)):
        with pytest.raises(InvalidSpec, match="significant"):
            await pool.reload(child("kind", restart=Restart.TRANSIENT, significant=True))
        with pytest.raises(UnknownGate, match="redis"):
            await pool.reload(child("kind", requires=("redis",)))
        with pytest.raises(InvalidSpec, match="stop_within"):
            await pool.reload({"id": "kind", "body": _nobody, "stop_within": -1})
        assert await pool.start_child() is not None


async def test_otp_102_the_flags_of_a_pool_can_be_changed(autojump_clock: MockClock) -> None:
    """A pool's new intensity holds at once; its children, and its template, are not touched."""
    template = child("kind", flaky("crash stay", 5.0))
    pool = Pool("pool", template, intensity=Intensity(0))
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        assert await pool.reload(intensity=Intensity(1), stagger=0.0) == Changes(flags=("intensity", "stagger"))
        assert handle.is_alive
        assert pool.template is template
        await trio.sleep_until(100)  # the crash at 5 would have ended it
        assert pool.count_children().active == 1


# 103: auto_shutdown --------------------------------------------------------------------------------------------------


def weighty(name: str, after: float = 10.0) -> ChildSpec:
    return child(name, flaky("return stay", after), restart=Restart.TEMPORARY, significant=True)


async def how_it_ends(
    first: Mode, modes: Iterable[Mode], children: Iterable[ChildSpec] = ()
) -> tuple[Ending | None, float]:
    """How, and when, a tree ends whose significant children came by calls and whose mode changes in the middle."""
    root = Supervisor("app", [child("calm")], auto_shutdown=first)
    tree = Tree(root)
    ended: list[tuple[Ending, float]] = []

    async def run() -> None:
        ended.append((await tree.run(), trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await tree.ready()
        for spec in children:
            await root.start_child(spec)
        for mode in modes:
            before = handles(root)
            await trio.sleep(1)
            assert await root.reload(Plan(root.plan.children, auto_shutdown=mode)) == Changes(flags=("auto_shutdown",))
            await trio.sleep(1)
            assert handles(root) == before, "nothing stops at the change"
        await trio.sleep_until(100)
        if ended:
            return ended[0]
        tree.stop("the test is over")
    return None, 0.0


@pytest.mark.parametrize(
    ("first", "then", "children", "end"),
    [
        # the two significant children return at 10 and 20
        (ANY, [NEVER], 1, None),
        (ALL, [NEVER], 1, None),
        (ANY, [NEVER], 2, None),
        (ALL, [NEVER], 2, None),
        (ANY, [ALL], 2, 20),
        (ALL, [ANY], 2, 10),
        (ANY, [ALL], 1, 10),
        (ALL, [ANY], 1, 10),
        # never: no significant child can be there but one that came before
        (ANY, [NEVER, ANY], 2, 10),
        (ANY, [NEVER, ALL], 2, 20),
        (ALL, [NEVER, ANY], 2, 10),
        (ALL, [NEVER, ALL], 2, 20),
    ],
)
async def test_otp_103_a_new_auto_shutdown_holds_for_the_next_end_and_stops_nothing_at_the_change(
    first: Mode, then: list[Mode], children: int, end: float | None, autojump_clock: MockClock
) -> None:
    """auto_shutdown changed while significant children live: nothing stops; the next end goes by the new mode."""
    significant = [weighty("one", 10.0), weighty("two", 20.0)][:children]
    ending, at = await how_it_ends(first, then, significant)
    assert (ending, at) == ((None, 0.0) if end is None else (Ending.SHUTDOWN, end))


@pytest.mark.parametrize("mode", [ANY, ALL])
async def test_otp_103_a_significant_child_is_refused_under_never_and_taken_in_after_the_change(
    mode: Mode, autojump_clock: MockClock
) -> None:
    """Under never a significant child cannot be added; changed to any or all it can, and its end counts."""
    root = Supervisor("app", [child("calm")])
    tree = Tree(root)

    async def change() -> None:
        await tree.ready()
        with pytest.raises(InvalidSpec, match=r"'one' has significant=True under auto_shutdown=AutoShutdown\.NEVER"):
            await root.start_child(weighty("one"))
        assert states(root) == {"calm": "running"}
        await root.reload(Plan(root.plan.children, auto_shutdown=mode))
        assert await root.start_child(weighty("one")) is not None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        assert await tree.run() is Ending.SHUTDOWN
    assert trio.current_time() == 10


@pytest.mark.parametrize("mode", [ANY, ALL])
async def test_otp_103_after_a_change_to_never_a_significant_child_is_refused(
    mode: Mode, autojump_clock: MockClock
) -> None:
    """A mode that was changed to never refuses what it refuses from the start."""
    root = Supervisor("app", [child("calm")], auto_shutdown=mode)
    async with running(Tree(root)):
        await root.reload(Plan(root.plan.children))
        with pytest.raises(InvalidSpec, match="significant"):
            await root.start_child(weighty("one"))


@pytest.mark.parametrize("mode", [ANY, ALL])
async def test_otp_103_a_plan_with_a_significant_child_cannot_go_over_to_never(
    mode: Mode, autojump_clock: MockClock
) -> None:
    """Ours: a plan is whole, so one that has a significant child under never is refused, and nothing changes."""
    tree = Tree(root := Supervisor("app", [weighty("one")], auto_shutdown=mode))

    async def change() -> None:
        await tree.ready()
        with pytest.raises(InvalidSpec, match="significant"):
            await root.reload(lambda: Plan(root.plan.children))
        assert root.plan.auto_shutdown is mode

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        assert await tree.run() is Ending.SHUTDOWN
    assert trio.current_time() == 10


# 104: significant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [ANY, ALL])
@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
@pytest.mark.parametrize("becomes", [True, False])
async def test_otp_104_the_next_end_follows_the_new_significance(
    becomes: bool, restart: Restart, mode: Mode, autojump_clock: MockClock
) -> None:
    """A child that became significant, or ceased to be, counts at its next end as its new specification says."""
    body = flaky("return", 10.0)
    before = child("one", body, restart=restart, significant=not becomes)
    after = child("one", body, restart=restart, significant=becomes)
    calm = child("calm")
    root = Supervisor("app", [calm, before], auto_shutdown=mode)
    tree = Tree(root)

    async def change() -> None:
        await tree.ready()
        handle = root.which_child("one").handle
        assert await root.reload(Plan([calm, after], auto_shutdown=mode)) == Changes(changed=("one",))
        await trio.sleep_until(9)
        assert root.which_child("one").handle is handle
        await trio.sleep_until(50)
        if not becomes:
            assert states(root)["calm"] == "running"
            tree.stop("it stays up")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        ending = await tree.run()
        assert (ending, trio.current_time()) == ((Ending.SHUTDOWN, 10) if becomes else (Ending.STOPPED, 50))
        nursery.cancel_scope.cancel()


async def test_otp_104_significance_is_refused_under_never(autojump_clock: MockClock) -> None:
    """Under never a change to significant is refused, and nothing changes."""
    before = child("one", restart=Restart.TRANSIENT)
    root = Supervisor("app", [before])
    async with running(Tree(root)):
        handle = root.which_child("one").handle
        with pytest.raises(InvalidSpec, match=r"'one' has significant=True under auto_shutdown=AutoShutdown\.NEVER"):
            await root.reload(lambda: [child("one", restart=Restart.TRANSIENT, significant=True)])
        assert root.get_childspec("one") is before
        assert root.which_child("one").handle is handle
        assert root.which_child("one").kind is Kind.WORKER


@pytest.mark.parametrize("became", [True, False])
def test_core_104_the_table_of_changed_significance(became: bool) -> None:
    """What an end leads to after a change, by mode and way."""
    for mode in (ANY, ALL):
        for error in (None, Misbehaved()):
            play = Play([spec("a"), spec("b", restart=Restart.TEMPORARY, significant=not became)], auto_shutdown=mode)
            play.tell(Begin())
            new = [spec("a"), spec("b", restart=Restart.TEMPORARY, significant=became)]
            play.tell(Reload("ticket", Plan(new, intensity=play.core.plan.intensity, auto_shutdown=mode)))
            play.end("b", error)
            assert (play.finished is not None) is became
