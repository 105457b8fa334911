"""The order of starts and stops, and how much time a stop leaves (lines 28 to 39 of the list)."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import child, end, events_of, handles, of_kind

from penstock.runtime.supervision import (
    CUT,
    Body,
    Child,
    ChildIsStuck,
    Ending,
    LifecycleEvent,
    LifecycleKind,
    Pool,
    Restart,
    Shutdown,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import AddChild, Begin, Phase, StopOrdered
from penstock.runtime.supervision.outcome import ErrorInfo
from penstock.runtime.testing import Diary, Misbehaved, deaf, flaky, running, slow_leaver, steady, stuck

MISBEHAVED = ErrorInfo.of(Misbehaved()).type

ENDS = {
    "return": (LifecycleKind.CHILD_RETURNED, "", None),
    "bow out": (LifecycleKind.CHILD_RETURNED, "bowed out", None),
    "bow out with a word": (LifecycleKind.CHILD_RETURNED, "bowed out: enough", None),
    "crash": (LifecycleKind.CHILD_CRASHED, "", MISBEHAVED),
}
"""Ways to end by oneself, and how they are reported: kind, reason, type of the error."""

STOPPED = {way: (LifecycleKind.CHILD_STOPPED, reason, error) for way, (_, reason, error) in ENDS.items()}
"""The same ways, of who is told to go."""


class Log:
    """Who was told what, and when: ``("cancelled", 1.0)``, by the ids of the children."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[str, float]]] = {}

    def note(self, child: Child, what: str) -> None:
        self.of.setdefault(child.id, []).append((what, trio.current_time()))

    async def polite(self, child: Child) -> None:
        """Leaves when it is asked to, before it is cancelled."""
        child.started()
        await child.draining.wait()
        self.note(child, "left when asked" if not child.cut.is_set() else "cut")

    def busy(self, seconds: float = 200.0) -> Body:
        """Looks at nothing but its work, which takes so long."""

        async def body(child: Child, *args: float) -> None:
            child.started()
            try:
                await trio.sleep(args[0] if args else seconds)
                self.note(child, "done")
            except trio.Cancelled:
                self.note(child, "cut" if child.cut.is_set() else "cancelled")
                raise

        return body


def ends_in(events: list[LifecycleEvent]) -> dict[str, list[tuple[LifecycleKind, str, str | None]]]:
    """How each child ended, each time: kind, reason, type of the error."""
    kinds = {LifecycleKind.CHILD_RETURNED, LifecycleKind.CHILD_CRASHED, LifecycleKind.CHILD_STOPPED}
    found: dict[str, list[tuple[LifecycleKind, str, str | None]]] = {}
    for event in events:
        if event.kind in kinds:
            error = None if event.error is None else event.error.type
            found.setdefault(event.path, []).append((event.kind, event.reason, error))
    return found


def paths_of(events: list[LifecycleEvent], kind: LifecycleKind) -> list[str]:
    return [event.path for event in of_kind(events, kind)]


ON_ORDER = [(LifecycleKind.CHILD_STOPPED, "", None)]


# 28 to 32: limits ----------------------------------------------------------------------------------------------------


async def test_otp_028_children_without_a_stop_limit_end_on_order(autojump_clock: MockClock) -> None:
    """Two children without a stop limit end on order when the tree stops, however long one takes."""
    slow = child("slow", slow_leaver(3600), stop_within=float("inf"))
    tree = Tree(Supervisor("app", [child("quick", steady(), stop_within=float("inf")), slow]))
    with events_of(tree) as events:
        async with running(tree):
            pass
    assert ends_in(events) == {"app/quick": ON_ORDER, "app/slow": ON_ORDER}
    assert paths_of(events, LifecycleKind.CHILD_STUCK) == []
    assert trio.current_time() == 3600


@pytest.mark.parametrize("busy_is_last", [True, False])
async def test_otp_029_a_busy_child_is_cut_at_its_limit_and_a_polite_one_leaves_when_asked(
    busy_is_last: bool, autojump_clock: MockClock
) -> None:
    """Of two children with a limit of 1 s the polite one ends when asked, and the one busy for 200 s is cut at 1 s."""
    log = Log()
    specs = [child("polite", log.polite, drain_within=1), child("busy", log.busy(), drain_within=1)]
    tree = Tree(Supervisor("app", specs if busy_is_last else specs[::-1]))
    with events_of(tree) as events:
        async with running(tree):
            await trio.sleep(10)
            log.of.clear()
    asked = 11 if busy_is_last else 10
    assert log.of == {"polite": [("left when asked", asked)], "busy": [("cancelled", 11)]}
    assert ends_in(events) == {"app/polite": ON_ORDER, "app/busy": ON_ORDER}
    assert trio.current_time() == 11


async def test_otp_029_a_child_that_does_not_hear_its_cancel_is_passed_by_at_its_limit(
    autojump_clock: MockClock,
) -> None:
    """A child with a limit of 1 s that hears nothing for 200 s holds up the stop of the others for 1 s."""
    # Ours, not OTP's: nothing kills a task of trio. At its limit it is reported as stuck, and the tree waits for it.
    log = Log()
    specs = [child("polite", log.polite, stop_within=1), child("busy", stuck(200), stop_within=1)]
    tree = Tree(Supervisor("app", specs))
    with events_of(tree) as events:
        async with running(tree):
            await trio.sleep(10)
    assert log.of == {"polite": [("left when asked", 11)]}
    assert paths_of(events, LifecycleKind.CHILD_STUCK) == ["app/busy"]
    assert "limit 1 s" in next(event.reason for event in events if event.kind is LifecycleKind.CHILD_STUCK)
    assert ends_in(events) == {"app/polite": ON_ORDER, "app/busy": ON_ORDER}
    assert trio.current_time() == 200


async def test_otp_030_a_pool_stops_its_busy_child_at_the_limit_and_ends_on_order(autojump_clock: MockClock) -> None:
    """In a pool, too, the polite child ends when asked and the busy one is cut at 1 s; the pool ends on order."""
    log = Log()

    async def either(child: Child, kind: str) -> None:
        await (log.polite(child) if kind == "polite" else log.busy()(child))

    pool = Pool("pool", child("each", either, drain_within=1))
    tree = Tree(Supervisor("app", [pool.spec()]))
    with events_of(tree) as events:
        async with running(tree):
            for kind in ("polite", "busy"):
                await pool.start_child(kind)
    assert log.of == {"1": [("left when asked", 0)], "2": [("cancelled", 1)]}
    assert ends_in(events) == {"app/pool/1": ON_ORDER, "app/pool/2": ON_ORDER, "app/pool": ON_ORDER}
    assert trio.current_time() == 1


async def test_otp_030_a_pool_that_is_the_root_ends_on_order(autojump_clock: MockClock) -> None:
    """A tree whose root is a pool with a busy child ends as any other that is stopped."""
    log = Log()
    pool = Pool("pool", child("each", log.busy(), drain_within=1))
    tree = Tree(pool)
    endings: list[Ending] = []

    async def run() -> None:
        endings.append(await tree.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        assert await tree.ready()
        await pool.start_child()
        tree.stop("enough")
    assert endings == [Ending.STOPPED]
    assert log.of == {"1": [("cancelled", 1)]}


@pytest.mark.parametrize("cut_is_last", [True, False])
async def test_otp_031_a_child_without_grace_is_cut_at_once(cut_is_last: bool, autojump_clock: MockClock) -> None:
    """A child whose limit is CUT gets no grace, whatever else it asks for, and its sibling gets its own second."""
    # OTP kills; ours cancels at once, and says that there is no time.
    log = Log()
    specs = [
        child("patient", log.busy(), drain_within=1),
        child("condemned", log.busy(), drain_within=60, stop_within=CUT),
    ]
    tree = Tree(Supervisor("app", specs if cut_is_last else specs[::-1]))
    async with running(tree):
        await trio.sleep(10)
    assert log.of == {"patient": [("cancelled", 11)], "condemned": [("cut", 10 if cut_is_last else 11)]}
    assert trio.current_time() == 11


async def test_otp_031_a_child_without_grace_that_stays_is_stuck_at_once(autojump_clock: MockClock) -> None:
    """A child whose limit is CUT and that does not leave is reported at once, and holds up nobody's stop."""
    log = Log()
    specs = [child("polite", log.polite), child("condemned", stuck(200), stop_within=CUT)]
    tree = Tree(Supervisor("app", specs))
    with events_of(tree) as events:
        async with running(tree):
            await trio.sleep(10)
    assert log.of == {"polite": [("left when asked", 10)]}
    assert paths_of(events, LifecycleKind.CHILD_STUCK) == ["app/condemned"]


async def test_otp_032_a_pool_of_children_without_grace_is_cut_as_a_whole(autojump_clock: MockClock) -> None:
    """All ten children of a pool whose limit is CUT are cut at the moment of the stop."""
    log = Log()
    pool = Pool("pool", child("each", log.busy(), drain_within=60, stop_within=CUT))
    tree = Tree(pool)
    with events_of(tree) as events:
        async with running(tree):
            for _ in range(10):
                await pool.start_child()
            await trio.sleep(10)
    assert log.of == {str(number): [("cut", 10)] for number in range(1, 11)}
    assert ends_in(events) == {f"pool/{number}": ON_ORDER for number in range(1, 11)}
    assert trio.current_time() == 10


# 33, 34: ends in the midst of a stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_otp_033_who_ends_by_itself_during_the_stop_keeps_its_reason_and_stays_away(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """While a later child is still leaving, twelve others end by themselves: no restart, each keeps its own reason."""
    go = trio.Event()

    def ends(way: str) -> Body:
        async def body(child: Child) -> None:
            child.started()
            await go.wait()
            end(way)

        return body

    kinds = [(restart, way) for restart in Restart for way in ENDS]
    specs = [child(f"{restart.value} {way}", ends(way), restart=restart) for restart, way in kinds]
    tree = Tree(Supervisor("app", [*specs, child("leaving", slow_leaver(3))], strategy=strategy))
    with events_of(tree) as events:
        async with running(tree):
            tree.stop("enough")
            await trio.sleep(1)
            go.set()
    expected = {f"app/{restart.value} {way}": [ENDS[way]] for restart, way in kinds}
    assert len(expected) == 12
    assert ends_in(events) == {**expected, "app/leaving": ON_ORDER}
    assert len(paths_of(events, LifecycleKind.CHILD_STARTING)) == 13
    assert not paths_of(events, LifecycleKind.CHILD_BACKOFF)
    assert trio.current_time() == 3


@pytest.mark.parametrize("strategy", list(Strategy))
def test_core_033_who_ends_by_itself_during_the_stop_costs_no_restart(strategy: Strategy) -> None:
    """Whoever ends while a later sibling is leaving, in whatever way, is neither started again nor counted."""
    errors = {
        "return": None,
        "bow out": Shutdown(),
        "bow out with a word": Shutdown("enough"),
        "crash": Misbehaved(),
    }
    kinds = [(restart, way) for restart in Restart for way in ENDS]
    play = Play([*(spec(f"{r.value} {way}", restart=r) for r, way in kinds), spec("leaving")], strategy)
    play.deaf.add("leaving")
    play.tell(Begin())
    left = play.core.budget.left(play.now)
    play.tell(StopOrdered("enough"))
    play.take()
    for restart, way in kinds:
        play.end(f"{restart.value} {way}", errors[way])
    assert play.finished is None
    play.end("leaving")
    assert play.finished is not None
    assert play.finished.error is None
    assert play.take() == ""
    assert play.core.budget.left(play.now) == left
    for restart, way in kinds:
        kind, reason, _ = ENDS[way]
        last = [report for report in play.reports if report.subject == f"{restart.value} {way}"][-1]
        assert (last.kind, last.reason) == (kind, reason)


@pytest.mark.parametrize("told_by", ["drain", "cancel"])
@pytest.mark.parametrize("restart", list(Restart))
async def test_otp_034_whatever_its_children_answer_a_pool_ends_cleanly(
    restart: Restart, told_by: str, autojump_clock: MockClock
) -> None:
    """The children of a stopping pool answer with a return, a bow or a crash: it ends cleanly, reasons are kept."""

    async def answers(child: Child, way: str) -> None:
        child.started()
        if told_by == "drain":
            await child.draining.wait()
            await trio.sleep(1)
        else:
            with suppress(trio.Cancelled):
                await trio.sleep_forever()
        end(way)

    pool = Pool("pool", child("each", answers, restart=restart, drain_within=2 if told_by == "drain" else 0))
    tree = Tree(Supervisor("app", [pool.spec()]))
    with events_of(tree) as events:
        async with running(tree):
            for way in ENDS:
                await pool.start_child(way)
    expected = {f"app/pool/{number}": [STOPPED[way]] for number, way in enumerate(ENDS, 1)}
    assert ends_in(events) == {**expected, "app/pool": ON_ORDER}
    assert len(paths_of(events, LifecycleKind.CHILD_STARTING)) == 5
    assert trio.current_time() == (1 if told_by == "drain" else 0)


# 35: the shared limit of a pool --------------------------------------------------------------------------------------


async def test_otp_035_the_children_of_a_pool_share_one_limit(autojump_clock: MockClock) -> None:
    """A pool with a limit of 2 s, two children that need 1 s and one that needs 5 s, stops within exactly 2 s."""
    log = Log()

    async def finishes(child: Child, seconds: float) -> None:
        child.started()
        await child.draining.wait()
        log.note(child, "asked")
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            log.note(child, "cancelled")
            raise

    pool = Pool("pool", child("each", finishes, drain_within=2))
    async with running(Tree(pool)):
        for seconds in (1, 5, 1):
            await pool.start_child(seconds)
        await trio.sleep(10)
    assert log.of == {"1": [("asked", 10)], "2": [("asked", 10), ("cancelled", 12)], "3": [("asked", 10)]}
    assert trio.current_time() == 12


async def test_otp_035_the_limit_after_the_cancel_is_shared_too(autojump_clock: MockClock) -> None:
    """After a shared limit of 2 s a pool with a child that needs 5 s is passed by, and its siblings stop."""
    # Ours, not OTP's: the child that needs 5 s cannot be killed at 2 s. It is stuck, and the tree ends when it is gone.
    log = Log()

    async def leaves(child: Child, seconds: float) -> None:
        await slow_leaver(seconds)(child)

    pool = Pool("pool", child("each", leaves, stop_within=2))
    tree = Tree(Supervisor("app", [child("polite", log.polite), pool.spec()]))
    with events_of(tree) as events:
        async with running(tree):
            for seconds in (1, 5, 1):
                await pool.start_child(seconds)
            await trio.sleep(10)
    assert log.of == {"polite": [("left when asked", 12)]}
    assert paths_of(events, LifecycleKind.CHILD_STUCK) == ["app/pool/2", "app/pool"]
    assert trio.current_time() == 15


def test_core_035_a_pool_asks_all_its_children_at_once() -> None:
    """The stop of a pool orders all drains in one step, and all cancels when the one limit has passed."""
    play = Play([], is_pool=True)
    play.tell(Begin())
    for name in "123":
        play.tell(AddChild(name, spec(name, drain_within=2)))
    play.take()
    play.tell(StopOrdered("enough"))
    assert sorted(play.take().split()) == ["~1", "~2", "~3"]
    assert play.core.next_deadline() == 2
    play.end("1")
    play.advance(2)
    assert sorted(play.take().split()) == ["-2", "-3"]
    assert play.finished is not None


# 36 to 38: order -----------------------------------------------------------------------------------------------------

UNSORTED = ["three", "one", "five", "two", "four"]


async def test_otp_036_children_start_in_the_order_given(autojump_clock: MockClock) -> None:
    """Five children with unsorted ids start in the order in which they were given, one after the other."""
    log = Log()

    def slow(seconds: float) -> Body:
        async def body(child: Child) -> None:
            log.note(child, "begun")
            await trio.sleep(seconds)
            child.started()
            await trio.sleep_forever()

        return body

    specs = [child(name, slow(5 - place)) for place, name in enumerate(UNSORTED)]
    root = Supervisor("app", specs)
    async with running(Tree(root)):
        assert list(log.of) == UNSORTED
        assert list(log.of.values()) == [[("begun", at)] for at in (0, 5, 9, 12, 14)]
        assert [entry.id for entry in root.which_children()] == UNSORTED[::-1]
        assert trio.current_time() == 15


def five(diary: Diary, third: Body) -> Supervisor:
    bodies = {name: third if name == "3" else steady() for name in "12345"}
    specs = [child(name, diary.of(name, body)) for name, body in bodies.items()]
    return Supervisor("app", specs, strategy=Strategy.REST_FOR_ONE)


async def test_otp_037_rest_for_one_stops_the_later_ones_backwards_and_starts_them_in_order(
    autojump_clock: MockClock,
) -> None:
    """When the third of five crashes, 5 then 4 stop, then 3, 4 and 5 start, and 1 and 2 are not touched."""
    diary = Diary()
    root = five(diary, flaky("crash stay", after=10))
    async with running(Tree(root)):
        assert diary.take() == "+1 +2 +3 +4 +5"
        before = handles(root)
        await trio.sleep_until(10.5)
        assert diary.take() == "!3 -5 -4"
        await trio.sleep_until(11.5)
        assert diary.take() == "+3 +4 +5"
        after = handles(root)
        assert [name for name in "12345" if after[name] is before[name]] == ["1", "2"]
        assert all(handle is not None and handle.is_alive for handle in after.values())


async def test_otp_037_nobody_starts_before_all_have_left(autojump_clock: MockClock) -> None:
    """When a later one takes longer over leaving than the pause lasts, the start of the group waits for it."""
    diary = Diary()
    bodies = {"3": flaky("crash stay", after=10), "4": steady(), "5": slow_leaver(3)}
    specs = [child(name, diary.of(name, body)) for name, body in bodies.items()]
    async with running(Tree(Supervisor("app", specs, strategy=Strategy.REST_FOR_ONE))):
        diary.take()
        await trio.sleep_until(12.9)
        assert diary.take() == "!3"
        await trio.sleep_until(13.1)
        assert diary.take() == "-5 -4 +3 +4 +5"


async def test_otp_038_the_stop_goes_backwards(autojump_clock: MockClock) -> None:
    """The same tree, after its restart, stops in the order 5, 4, 3, 2, 1."""
    diary = Diary()
    root = five(diary, flaky("crash stay", after=10))
    async with running(Tree(root)):
        await trio.sleep_until(12)
        diary.take()
    assert diary.take() == "-5 -4 -3 -2 -1"


def test_core_036_037_038_order() -> None:
    """The order of a start, a restart of the rest, and a stop, as orders of the core."""
    play = begun(*UNSORTED, strategy=Strategy.REST_FOR_ONE)
    play.crash("five")
    assert play.take() == "-four -two"
    play.advance(1)
    assert play.take() == "+five +two +four"
    play.tell(StopOrdered("enough"))
    assert play.take() == "-four -two -five -one -three"
    assert play.core.phase is Phase.DONE


# 39: a child that does not let itself be stopped ---------------------------------------------------------------------


async def test_otp_039_a_child_that_swallows_its_cancel_is_gone_all_the_same(autojump_clock: MockClock) -> None:
    """A child that swallows its first cancel is stopped by the next, which trio sends by itself; nobody hangs."""
    root = Supervisor("app", [child("loose", deaf()), child("other", steady())])
    async with running(Tree(root)):
        await root.terminate_child("loose")
        assert root.which_child("loose").state == "ended"
        assert root.which_child("other").state == "running"
        assert trio.current_time() == 0


async def test_otp_039_a_child_that_hears_no_cancel_does_not_hang_its_supervisor(autojump_clock: MockClock) -> None:
    """While a child does not leave, its supervisor serves other requests at once, and answers at the limit."""
    root = Supervisor("app", [child("loose", stuck(100), stop_within=2), child("other", steady())])
    calls: list[tuple[str, float]] = []

    async def stop() -> None:
        with pytest.raises(ChildIsStuck):
            await root.terminate_child("loose")
        calls.append(("stuck", trio.current_time()))

    async with running(Tree(root)), trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        await trio.sleep(1)
        assert root.which_child("loose").state == "stopping"
        handle = await root.start_child(child("new", steady()))
        assert handle is not None
        assert [entry.id for entry in root.which_children()] == ["new", "other", "loose"]
        assert trio.current_time() == 1
        await root.terminate_child("other")  # nobody depends on it, so it waits for nobody
        assert trio.current_time() == 1
        await trio.sleep(1.5)
        assert calls == [("stuck", 2)]
        assert root.which_child("loose").state == "stuck"
        await trio.sleep_until(100.5)
        assert root.which_child("loose").state == "ended"
        assert (await root.restart_child("loose")) is not None
