"""What a running supervisor is asked: children by call, lists, counts, and the same of a pool (lines 40 to 55)."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock, assert_no_checkpoints
from worlds import KEPT, NO_BUDGET, PLAIN, child, counts, handles, idle, states

from penstock.runtime.supervision import (
    AlreadyPresent,
    AlreadyStarted,
    Child,
    ChildHandle,
    Gates,
    Intensity,
    IsAPool,
    Kind,
    LifecycleKind,
    NotFound,
    NotRunning,
    Plan,
    Pool,
    Restart,
    StillRestarting,
    StillRunning,
    SupervisionError,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import AddChild, Begin, DeleteChild, RestartChild, TerminateChild
from penstock.runtime.testing import Diary, Misbehaved, flaky, naughty, running, slow_leaver, slow_starter, steady

ENDLESS = Intensity(100_000, 1.0)


async def asked(call: Callable[[Any], Any], root: Supervisor | Pool) -> Any:
    """The answer to a call, whether or not it is one that blocks."""
    answer = call(root)
    return await answer if inspect.isawaitable(answer) else answer


# 40 to 44: one child -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("by_call", [False, True])
async def test_otp_040_the_spec_of_a_running_child_is_already_started(
    by_call: bool, restart: Restart, autojump_clock: MockClock
) -> None:
    """The same spec is added while its child runs: already-started, with its handle; nothing changes."""
    diary = Diary()
    same = child("a", diary.of("a"), restart=restart)
    root = Supervisor("app", [] if by_call else [same])
    async with running(Tree(root)):
        if by_call:
            await root.start_child(same)
        handle = handles(root)["a"]
        assert handle is not None
        for again in (same, child("a", idle), {"id": "a", "body": idle}):  # the id is what counts
            with pytest.raises(AlreadyStarted, match="'a'") as caught:
                await root.start_child(again)
            assert caught.value.handle is handle
        assert handle.is_alive
        assert counts(root) == (1, 1, 0, 1)
        assert diary.take() == "+a"


async def test_otp_040_a_child_that_is_not_ready_yet_is_already_started_too(autojump_clock: MockClock) -> None:
    """Its handle is there from its first line on."""
    root = Supervisor("app")
    async with running(Tree(root)), trio.open_nursery() as nursery:
        nursery.start_soon(root.start_child, child("a", slow_starter(10.0)))
        await trio.sleep(5)
        with pytest.raises(AlreadyStarted) as caught:
            await root.start_child(child("a"))
        assert caught.value.handle is handles(root)["a"] is not None
        assert trio.current_time() == 5  # who comes second does not wait


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_041_a_child_that_is_stopped_by_id_is_listed_as_stopped(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A running child is stopped by id: it ends on order, stays in the list, and stopping it again is fine."""
    diary = Diary()
    root = Supervisor("app", [child("a", diary.of("a", slow_leaver(2.0)), restart=restart)], intensity=NO_BUDGET)
    with (tree := Tree(root)).subscribe() as events:
        async with running(tree):
            handle = handles(root)["a"]
            assert handle is not None
            list(events.drain())
            await root.terminate_child("a")
            assert trio.current_time() == 2  # the answer comes when it has left
            assert diary.take() == "+a -a"
            assert not handle.is_alive
            assert await handle.wait_ended() is None
            told = [(event.kind, event.error) for event in events.drain()]
            assert told == [(LifecycleKind.CHILD_STOPPING, None), (LifecycleKind.CHILD_STOPPED, None)]
            assert states(root) == {"a": "ended"}  # OTP's "stopped"
            assert handles(root) == {"a": None}
            assert counts(root) == (1, 0, 0, 1)
            await root.terminate_child("a")
            assert trio.current_time() == 2
            await trio.sleep(100)  # a stop by call is no reason to start it again
            assert states(root) == {"a": "ended"}
            assert counts(root) == (1, 0, 0, 1)


async def test_otp_041_a_temporary_child_goes_with_its_spec(autojump_clock: MockClock) -> None:
    """As in OTP: of a temporary child nothing is left to be stopped again."""
    root = Supervisor("app", [child("a", restart=Restart.TEMPORARY)])
    async with running(Tree(root)):
        await root.terminate_child("a")
        assert counts(root) == (0, 0, 0, 0)
        with pytest.raises(NotFound):
            await root.terminate_child("a")


async def test_otp_041_two_who_stop_one_child_both_hear_of_its_end(autojump_clock: MockClock) -> None:
    """A second stop while the child is leaving waits for the same end."""
    root = Supervisor("app", [child("a", slow_leaver(3.0))])
    async with running(Tree(root)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(root.terminate_child, "a")
            await trio.sleep(1)
            nursery.start_soon(root.terminate_child, "a")
            await trio.sleep(1)
            assert states(root) == {"a": "stopping"}
        assert trio.current_time() == 3
        assert states(root) == {"a": "ended"}


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_042_the_spec_of_a_stopped_child_is_already_present(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """The same spec is added while its child is stopped: already-present, and it stays stopped."""
    same = child("a", restart=restart)
    root = Supervisor("app", [same])
    async with running(Tree(root)):
        await root.terminate_child("a")
        with pytest.raises(AlreadyPresent, match="'a', stopped"):
            await root.start_child(same)
        await trio.sleep(100)
        assert states(root) == {"a": "ended"}
        assert root.get_childspec("a") == same


async def test_otp_042_whoever_ended_by_himself_is_present_too(autojump_clock: MockClock) -> None:
    """A transient child that returned is stopped like any other."""
    same = child("a", flaky("return stay", 5.0), restart=Restart.TRANSIENT)
    root = Supervisor("app", [same])
    async with running(Tree(root)):
        await trio.sleep(6)
        with pytest.raises(AlreadyPresent):
            await root.start_child(same)
        assert await root.restart_child("a") is not None


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_043_a_restart_by_id_gives_a_new_handle(restart: Restart, autojump_clock: MockClock) -> None:
    """A stopped child is restarted by id: a new handle; once more: running; an unknown id: not-found."""
    diary = Diary()
    root = Supervisor("app", [child("a", diary.of("a"), restart=restart)], intensity=NO_BUDGET)
    async with running(Tree(root)) as tree:
        old = handles(root)["a"]
        await root.terminate_child("a")
        new = await root.restart_child("a")
        assert new is not None
        assert new != old
        assert (new.path, new.incarnation) == ("app/a", 2)
        assert handles(root) == {"a": new}
        assert states(root) == {"a": "running"}
        with pytest.raises(StillRunning, match="'a'"):
            await root.restart_child("a")
        assert handles(root) == {"a": new}
        with pytest.raises(NotFound, match="'b'"):
            await root.restart_child("b")
        assert diary.take() == "+a -a +a"
        view = tree.snapshot().find("app/a")
        assert view is not None
        assert (view.incarnation, view.restarts) == (2, 0)  # a call's restart is none of the child's own


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_044_only_a_stopped_child_is_deleted(restart: Restart, autojump_clock: MockClock) -> None:
    """A running child is deleted: running; once stopped: deleted, gone from list and counts; restart: not-found."""
    root = Supervisor("app", [child("a", restart=restart)])
    async with running(Tree(root)):
        before = handles(root)
        with pytest.raises(StillRunning, match="'a'"):
            await root.delete_child("a")
        assert handles(root) == before
        assert states(root) == {"a": "running"}
        await root.terminate_child("a")
        await root.delete_child("a")
        assert root.which_children() == []
        assert counts(root) == (0, 0, 0, 0)
        for call in (root.restart_child, root.delete_child, root.terminate_child):
            with pytest.raises(NotFound, match="'a'"):
                await call("a")
        handle = await root.start_child(child("a"))
        assert handle is not None
        assert handle.incarnation == 1  # another child, of the same name


# What is answered depends on what the child is doing, and on nothing else. -------------------------------------------


def _running() -> Play:
    return begun("a")


def _starting() -> Play:
    play = Play([])
    play.tell(Begin())
    play.slow_starters = {"a"}
    play.tell(AddChild("before", spec("a")))
    return play


def _leaving() -> Play:
    play = begun("a")
    play.deaf = {"a"}
    play.tell(TerminateChild("before", "a"))
    return play


def _stopped() -> Play:
    play = begun("a")
    play.tell(TerminateChild("before", "a"))
    return play


def _in_backoff() -> Play:
    play = begun("a")
    play.crash("a")
    return play


def _restarting() -> Play:
    play = begun("a")
    play.crash("a")
    play.slow_starters = {"a"}
    play.advance(1.0)
    return play


def _started_after_a_loop() -> Play:
    play = _restarting()
    play.tell(TerminateChild("before", "a"))
    play.tell(RestartChild("start", "a"))
    return play


def _held() -> Play:
    play = Play([spec("a", requires=("g",))], shut={"g": "away"})
    play.tell(Begin())
    return play


def _absent() -> Play:
    play = Play([])
    play.tell(Begin())
    return play


PENDING = "no answer yet"
ANSWERS: dict[Callable[[], Play], tuple[Any, Any, Any, Any]] = {
    # what it is doing: the answer to add, terminate, restart, delete
    _running: (AlreadyStarted, None, StillRunning, StillRunning),
    _starting: (AlreadyStarted, None, StillRunning, StillRunning),
    _leaving: (AlreadyPresent, PENDING, StillRunning, StillRunning),
    _stopped: (AlreadyPresent, None, ("a", 2), None),
    _in_backoff: (AlreadyPresent, None, StillRestarting, StillRestarting),
    _restarting: (AlreadyPresent, None, StillRestarting, StillRestarting),
    _started_after_a_loop: (AlreadyStarted, None, StillRunning, StillRunning),
    _held: (AlreadyPresent, None, StillRestarting, StillRestarting),
    _absent: (("a", 1), NotFound, NotFound, NotFound),
}
CALLS = [
    lambda: AddChild("now", spec("a")),
    lambda: TerminateChild("now", "a"),
    lambda: RestartChild("now", "a"),
    lambda: DeleteChild("now", "a"),
]


@pytest.mark.parametrize("number", range(4), ids=["add", "terminate", "restart", "delete"])
@pytest.mark.parametrize("condition", ANSWERS, ids=lambda condition: condition.__name__)
def test_core_040_to_045_the_answer_to_each_call_for_each_condition(condition: Callable[[], Play], number: int) -> None:
    """One answer to each call, at once, but to who waits for a child to leave."""
    play, expected = condition(), ANSWERS[condition][number]
    play.tell(CALLS[number]())
    answer = play.answers.get("now", PENDING)
    if isinstance(expected, type):
        assert type(answer) is expected
    else:
        assert answer == expected
    if expected is PENDING:
        play.end("a")
        assert (play.answers["now"], play.answers["before"]) == (None, None)
    if number == 3 and expected is None:
        assert "a" not in play.core.children


# 45, 46: whom nobody knows -------------------------------------------------------------------------------------------


async def test_otp_045_an_unknown_id_is_not_found(autojump_clock: MockClock) -> None:
    """Stop and delete of an id that nobody has: not-found, naming it. (So say the queries.)"""
    root = Supervisor("app", [child("a")])
    calls: list[Callable[[Any], Any]] = [
        lambda root: root.terminate_child("b"),
        lambda root: root.delete_child("b"),
        lambda root: root.restart_child("b"),
        lambda root: root.which_child("b"),
        lambda root: root.get_childspec("b"),
    ]
    async with running(Tree(root)):
        for call in calls:
            with pytest.raises(NotFound, match="'b'"):
                await asked(call, root)
        assert states(root) == {"a": "running"}


EVERY_CALL: dict[str, Callable[[Any], Any]] = {
    "start_child": lambda root: root.start_child(child("new")),
    "terminate_child": lambda root: root.terminate_child("a"),
    "restart_child": lambda root: root.restart_child("a"),
    "delete_child": lambda root: root.delete_child("a"),
    "reload": lambda root: root.reload(Plan()),
    "preview": lambda root: root.preview(Plan()),
    "which_children": lambda root: root.which_children(),
    "which_child": lambda root: root.which_child("a"),
    "count_children": lambda root: root.count_children(),
    "get_childspec": lambda root: root.get_childspec("a"),
}


@pytest.mark.parametrize("name", EVERY_CALL)
async def test_otp_045_a_supervisor_that_does_not_run_refuses_every_call_at_once(
    name: str, autojump_clock: MockClock
) -> None:
    """Not in a tree, not begun, over, or in a sub-tree that is: each call raises at once, and nobody waits."""
    call = EVERY_CALL[name]
    nowhere, inner = Supervisor("nowhere", [child("a")]), Supervisor("inner", [child("a")])
    root = Supervisor("app", [child("a"), inner.spec()])
    tree = Tree(root)

    async def refused(supervisor: Supervisor, when: str) -> None:
        with assert_no_checkpoints(), pytest.raises(NotRunning, match=f"'{supervisor.id}' does not run {when}"):
            await asked(call, supervisor)

    for each in (nowhere, root, inner):
        await refused(each, "yet")
    async with running(tree):
        await root.terminate_child("inner")
        await refused(inner, "any more")
        await root.restart_child("inner")
        assert counts(inner) == (1, 1, 0, 1)
    for each in (root, inner):
        await refused(each, "any more")


@pytest.mark.parametrize("name", ["start_child", "terminate_child", "restart_child", "delete_child", "reload"])
async def test_otp_045_a_supervisor_that_is_stopping_takes_no_calls(name: str, autojump_clock: MockClock) -> None:
    """While it stops, a call is refused at once, though there are children still."""
    root = Supervisor("app", [child("a", slow_leaver(3.0))])
    tree = Tree(root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        tree.stop("enough")
        await trio.sleep(1)
        with pytest.raises(NotRunning, match="stopping"):
            await asked(EVERY_CALL[name], root)
        assert trio.current_time() == 1
        assert states(root) == {"a": "stopping"}


async def test_otp_045_a_call_in_flight_does_not_outlive_the_supervisor(autojump_clock: MockClock) -> None:
    """Who waits for a start when the supervisor stops is told so at once."""
    root = Supervisor("app", [child("a", slow_leaver(3.0))])
    tree = Tree(root)
    refused = []

    async def start() -> None:
        with pytest.raises(NotRunning, match="stopped before b was up"):
            await root.start_child(child("b", slow_starter(20.0)))
        refused.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        nursery.start_soon(start)
        await trio.sleep(1)
        tree.stop("enough")
    assert refused == [1]
    assert trio.current_time() == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.start_child(),
        lambda pool: pool.which_children(),
        lambda pool: pool.count_children(),
        lambda pool: pool.reload(),
    ],
)
async def test_otp_045_a_pool_that_does_not_run_refuses_every_call_at_once(
    call: Callable[[Pool], Any], autojump_clock: MockClock
) -> None:
    """The same of a pool."""
    pool = Pool("pool", child("kind", idle))
    tree = Tree(pool)
    with assert_no_checkpoints(), pytest.raises(NotRunning, match="'pool' does not run yet"):
        await asked(call, pool)
    async with running(tree):
        handle = await pool.start_child()
        assert handle is not None
    for late in (call, lambda pool: pool.terminate_child(handle), lambda pool: pool.which_child(handle)):
        with assert_no_checkpoints(), pytest.raises(NotRunning, match="'pool' does not run any more"):
            await asked(late, pool)


@pytest.mark.parametrize("name", ["terminate_child", "restart_child", "delete_child", "which_child", "get_childspec"])
async def test_otp_046_a_handle_is_no_id(name: str, autojump_clock: MockClock) -> None:
    """A child of a supervisor that is no pool is to be stopped by its handle: not-found, and it lives on."""
    root = Supervisor("app", [child("a")])
    async with running(Tree(root)):
        handle = handles(root)["a"]
        assert handle is not None
        with pytest.raises(NotFound, match="named by its id"):
            await asked(lambda root: getattr(root, name)(handle), root)
        await trio.sleep(100)
        assert handle.is_alive
        assert handles(root) == {"a": handle}


# 47: extra info ------------------------------------------------------------------------------------------------------


async def telling(child: Child) -> None:
    """Tells at which port it is, another one each time, and crashes in its second life."""
    child.started(f"port {child.incarnation}")
    await trio.sleep(5 if child.incarnation == 2 else float("inf"))
    raise Misbehaved


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_047_what_a_child_says_of_itself_comes_back_with_its_handle(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A start gives extra info: a start and a restart by call hand it out; after a crash it works the same."""
    root = Supervisor("app", [child("z", telling)])
    async with running(Tree(root)):
        static = handles(root)["z"]
        assert static is not None
        assert static.info == "port 1"
        first = await root.start_child(child("a", telling, restart=restart))
        assert first is not None
        assert first.info == "port 1"
        await root.terminate_child("a")
        second = await root.restart_child("a")
        assert second is not None
        assert second.info == "port 2"
        await trio.sleep(5.5)  # crashed, and in its backoff of a second
        assert handles(root)["a"] is None
        assert not second.is_alive
        assert second.info == "port 2"
        await trio.sleep(1)
        third = handles(root)["a"]
        assert third is not None
        assert (third.info, third.incarnation) == ("port 3", 3)
        assert (await root.start_child(child("b"))).info is None  # type: ignore[union-attr]


async def test_otp_047_in_a_pool_too(autojump_clock: MockClock) -> None:
    """Each child of a pool says of itself what it likes."""

    async def body(child: Child, number: int) -> None:
        child.started({"number": number, "incarnation": child.incarnation})
        await trio.sleep(5 if child.incarnation == 1 else float("inf"))
        raise Misbehaved

    pool = Pool("pool", child("kind", body))
    async with running(Tree(pool)):
        given = [await pool.start_child(number) for number in (7, 8)]
        assert [each and each.info for each in given] == [{"number": n, "incarnation": 1} for n in (7, 8)]
        await trio.sleep(10)
        infos = [each and each.info for each in handles(pool).values()]
        assert infos == [{"number": n, "incarnation": 2} for n in (7, 8)]


# 48 to 50: pools -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
async def test_otp_048_a_fresh_pool_is_empty(kind: Kind, autojump_clock: MockClock) -> None:
    """A pool in which nothing was started: an empty list, and counts of one spec (its template) and nobody."""
    pool = Pool("pool", child("kind", idle, kind=kind))
    async with running(Tree(pool)):
        assert pool.which_children() == []
        assert counts(pool) == (1, 0, 0, 0)


@pytest.mark.parametrize("restart", Restart)
async def test_otp_049_a_pool_s_child_is_stopped_by_its_handle(restart: Restart, autojump_clock: MockClock) -> None:
    """Two in a pool: one is stopped by handle, one remains; a dead handle is fine, a stranger's is not-found."""
    diary = Diary()
    bodies = iter([diary.of("a", idle), diary.of("b", idle)])

    async def body(child: Child) -> None:
        await next(bodies)(child)

    pool, other = Pool("pool", child("kind", body, restart=restart)), Pool("other", child("kind", idle))
    root = Supervisor("app", [pool.spec(), other.spec(), child("z")])
    async with running(Tree(root)):
        first, second = await pool.start_child(), await pool.start_child()
        assert first is not None
        assert second is not None
        await pool.terminate_child(first)
        assert diary.take() == "+a +b -a"
        assert list(handles(pool).values()) == [second]
        assert counts(pool) == (1, 1, 0, 1)
        await pool.terminate_child(first)
        assert list(handles(pool).values()) == [second]
        for stranger in (await other.start_child(), handles(root)["z"]):
            assert stranger is not None
            with pytest.raises(NotFound):
                await pool.terminate_child(stranger)
            await trio.sleep(10)
            assert stranger.is_alive
        assert second.is_alive
        assert counts(pool) == (1, 1, 0, 1)


async def test_otp_049_a_handle_of_an_earlier_life_is_dead(autojump_clock: MockClock) -> None:
    """After a restart of the child, or of the whole pool, the old handle is a dead one: fine, and nobody is hit."""
    pool = Pool("pool", child("kind", flaky("crash stay", 5.0)))
    root = Supervisor("app", [pool.spec()])
    async with running(Tree(root)):
        first = await pool.start_child()
        assert first is not None
        await trio.sleep(10)
        (second,) = handles(pool).values()
        assert second is not None
        assert second != first
        await pool.terminate_child(first)
        assert handles(pool) == {"1": second}
        await root.terminate_child("pool")
        await root.restart_child("pool")
        assert pool.which_children() == []
        third = await pool.start_child()
        assert third is not None
        await pool.terminate_child(second)
        assert list(handles(pool).values()) == [third]


@pytest.mark.parametrize("call", ["terminate_child", "restart_child", "delete_child", "which_child", "get_childspec"])
@pytest.mark.parametrize("given", ["1", "kind", "nobody", None, 1])
async def test_otp_050_an_id_says_nothing_to_a_pool(call: str, given: Any, autojump_clock: MockClock) -> None:
    """Stop, restart or delete in a pool by id: the error says that this is a pool; its children live on."""
    pool = Pool("pool", child("kind", idle))
    async with running(Tree(pool)):
        handle = await pool.start_child()
        with pytest.raises(IsAPool, match="pool is a pool"):
            await asked(lambda pool: getattr(pool, call)(given), pool)
        assert handles(pool) == {"1": handle}


@pytest.mark.parametrize("call", ["restart_child", "delete_child"])
async def test_otp_050_nor_is_a_pool_s_child_restarted_or_deleted_by_handle(
    call: str, autojump_clock: MockClock
) -> None:
    """Nobody in a pool is stopped and kept."""
    pool = Pool("pool", child("kind", idle))
    async with running(Tree(pool)):
        handle = await pool.start_child()
        with pytest.raises(IsAPool, match="pool is a pool"):
            await getattr(pool, call)(handle)
        assert handles(pool) == {"1": handle}


# 51 to 55: lists and counts ------------------------------------------------------------------------------------------


def listed(root: Supervisor | Pool) -> list[tuple[str, str, bool]]:
    """Id, state, and whether there is a handle; the single-child query is held to the list on the way."""
    entries = root.which_children()
    for entry in entries:
        if isinstance(root, Supervisor):
            assert root.which_child(entry.id) == entry
        elif entry.handle is not None:
            assert root.which_child(entry.handle) == entry
    return [(entry.id, entry.state, entry.handle is not None) for entry in entries]


async def test_otp_051_the_list_has_the_newest_first_and_each_one_s_state(autojump_clock: MockClock) -> None:
    """Children are added, stopped, deleted in turn: newest first, the right state, and the single query agrees."""
    up, stopped = ("running", True), ("ended", False)
    root = Supervisor("app", [child("s")])
    async with running(Tree(root)):
        assert listed(root) == [("s", *up)]
        await root.start_child(child("a"))
        assert listed(root) == [("a", *up), ("s", *up)]
        await root.start_child(child("b", restart=Restart.TRANSIENT))
        assert listed(root) == [("b", *up), ("a", *up), ("s", *up)]
        await root.terminate_child("a")
        assert listed(root) == [("b", *up), ("a", *stopped), ("s", *up)]
        await root.start_child(Supervisor("c").spec())
        assert listed(root) == [("c", *up), ("b", *up), ("a", *stopped), ("s", *up)]
        assert [entry.kind for entry in root.which_children()] == [Kind.SUPERVISOR] + [Kind.WORKER] * 3
        await root.terminate_child("b")
        assert listed(root) == [("c", *up), ("b", *stopped), ("a", *stopped), ("s", *up)]
        await root.delete_child("a")
        assert listed(root) == [("c", *up), ("b", *stopped), ("s", *up)]
        await root.start_child(child("a"))  # a new one, so the newest
        assert listed(root) == [("a", *up), ("c", *up), ("b", *stopped), ("s", *up)]
        await root.restart_child("b")  # an old one, at its old place
        assert listed(root) == [("a", *up), ("c", *up), ("b", *up), ("s", *up)]
        await root.start_child(child("t", restart=Restart.TEMPORARY))
        await root.terminate_child("t")
        assert listed(root) == [("a", *up), ("c", *up), ("b", *up), ("s", *up)]
        for name in "acbs":
            await root.terminate_child(name)
            with pytest.raises(NotFound):
                root.which_child("t")
        assert listed(root) == [(name, *stopped) for name in "acbs"]
        for name in "csab":
            await root.delete_child(name)
        assert listed(root) == []


async def test_otp_051_each_state_has_its_word(autojump_clock: MockClock) -> None:
    """What a child is doing besides: starting, in backoff, stopping, stuck."""
    specs = [child("b", naughty(5.0)), child("l", slow_leaver(3.0)), child("k", slow_leaver(3.0), stop_within=1.0)]
    root = Supervisor("app", specs)
    async with running(Tree(root)), trio.open_nursery() as nursery:
        nursery.start_soon(root.start_child, child("s", slow_starter(20.0)))
        await trio.sleep(5.5)
        nursery.start_soon(root.terminate_child, "l")
        await trio.sleep(0.25)
        assert listed(root) == [
            ("s", "starting", True),
            ("k", "running", True),
            ("l", "stopping", True),
            ("b", "backoff", False),
        ]
        await trio.sleep(4)
        with pytest.raises(SupervisionError, match="has not left"):
            await root.terminate_child("k")
        assert root.which_child("k").state == "stuck"
        assert root.which_child("l").state == "ended"
        await trio.sleep(12)


@pytest.mark.parametrize("restart", Restart)
async def test_otp_052_in_a_pool_list_and_single_query_agree(restart: Restart, autojump_clock: MockClock) -> None:
    """Children of a pool come and go: list and single query by handle agree; what is no handle gets the pool error."""
    pool = Pool("pool", child("kind", idle, restart=restart))
    async with running(Tree(pool)):
        living: list[ChildHandle] = []

        def agree() -> None:
            entries = pool.which_children()
            assert [entry.handle for entry in entries] == list(reversed(living))
            for entry, handle in zip(entries, reversed(living), strict=True):
                assert pool.which_child(handle) == entry
                assert (entry.id, entry.state, entry.kind) == (handle.id, "running", Kind.WORKER)

        agree()
        for what in "++-+--+++-":
            if what == "+":
                handle = await pool.start_child()
                assert handle is not None
                living.append(handle)
            else:
                gone = living.pop(0)
                await pool.terminate_child(gone)
                with pytest.raises(NotFound):
                    pool.which_child(gone)
            agree()
        for nonsense in ("1", "kind", None, 1, living):
            with pytest.raises(IsAPool, match="is a pool"):
                pool.which_child(nonsense)  # type: ignore[arg-type]
        agree()


async def _grows_and_dies(kind: Kind, column: int) -> None:
    """A pool of 1,000, then of 2,000, then of nobody: list, snapshot and counts agree, and change by nobody's look."""
    gone = trio.Event()

    async def body(child: Child, number: int) -> None:
        child.started()
        await gone.wait()
        if number % 2:
            raise Misbehaved

    pool = Pool("pool", child("kind", body, kind=kind, restart=Restart.TEMPORARY))
    numbers = itertools.count()
    tree = Tree(pool)
    async with running(tree):
        for total in (1000, 2000):
            async with trio.open_nursery() as nursery:
                for _ in range(1000):
                    nursery.start_soon(pool.start_child, next(numbers))
            expected = [1, total, 0, 0]
            expected[column] = total
            for _ in range(5):
                assert counts(pool) == tuple(expected)
                entries = pool.which_children()
                assert len(entries) == total
                assert {entry.kind for entry in entries} == {kind}
                assert all(entry.handle is not None for entry in entries)
                assert len(tree.snapshot().root.children) == total
                await trio.sleep(1)
        gone.set()
        await trio.sleep(1)
        assert counts(pool) == (1, 0, 0, 0)
        assert pool.which_children() == []


async def test_otp_053_a_pool_of_thousands_counts_right(autojump_clock: MockClock) -> None:
    """1,000, then 2,000 workers: counts and lists agree and do not change; when all are dead, there is nobody."""
    await _grows_and_dies(Kind.WORKER, 3)


async def test_otp_054_a_pool_of_thousands_of_supervisors_counts_right(autojump_clock: MockClock) -> None:
    """The same with supervisors as children: they count as supervisors."""
    await _grows_and_dies(Kind.SUPERVISOR, 2)


async def test_otp_054_supervisors_count_as_supervisors(autojump_clock: MockClock) -> None:
    """Whole supervisors, and a pool, as children of one: counted as such, running or not, apart from the workers."""
    root = Supervisor("app", [child("w")])
    async with running(Tree(root)):
        for number in range(100):
            await root.start_child(Supervisor(str(number), [child("x"), child("y")]).spec())
        await root.start_child(Pool("pool", child("kind")).spec())
        assert counts(root) == (102, 102, 101, 1)
        for number in range(50):
            await root.terminate_child(str(number))
        assert counts(root) == (102, 52, 101, 1)
        for number in range(50):
            await root.delete_child(str(number))
        assert counts(root) == (52, 52, 51, 1)


async def test_otp_055_who_does_not_come_back_up_is_not_active(autojump_clock: MockClock) -> None:
    """Three in a pool, two in a restart loop: active 1, workers 3; once starts work, 3; each stop brings it down."""
    broken: set[int] = set()

    async def body(child: Child, number: int) -> None:
        await trio.sleep(0.5)  # a failing start takes its time: who is on the way up is not there yet
        if number in broken:
            raise Misbehaved
        child.started()
        while number not in broken:
            await trio.sleep(0.5)
        raise Misbehaved

    pool = Pool("pool", child("kind", body), intensity=ENDLESS)
    async with running(Tree(pool)):
        for number in range(3):
            await pool.start_child(number)
        assert counts(pool) == (1, 3, 0, 3)
        broken.update((0, 1))
        await trio.sleep(1.1)
        seen = set()
        for _ in range(200):
            assert counts(pool) == (1, 1, 0, 3)
            seen |= {state for name, state in states(pool).items() if name != "3"}
            assert states(pool)["3"] == "running"
            await trio.sleep(0.25)
        assert seen == {"backoff", "starting"}
        broken.clear()
        await trio.sleep(PLAIN.maximum + 1)
        assert counts(pool) == (1, 3, 0, 3)
        left = 3
        for handle in handles(pool).values():
            assert handle is not None
            await pool.terminate_child(handle)
            left -= 1
            assert counts(pool) == (1, left, 0, left)
        assert left == 0
        assert pool.which_children() == []


async def test_otp_055_stopping_one_in_the_loop_ends_the_loop(autojump_clock: MockClock) -> None:
    """One that is stopped by the handle that it last had is counted no more, and nobody tries again."""
    pool = Pool("pool", child("kind", flaky("crash fail", 1.0)), intensity=ENDLESS)
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        await trio.sleep(50)
        assert counts(pool) == (1, 0, 0, 1)
        await pool.terminate_child(handle)
        assert counts(pool) == (1, 0, 0, 0)
        await trio.sleep(50)
        assert counts(pool) == (1, 0, 0, 0)


async def test_otp_049_a_pool_child_that_was_held_from_the_start_has_a_handle_too(autojump_clock: MockClock) -> None:
    """Held since it was added, it stands in the list under the handle of its first incarnation, and can be stopped."""
    gates = Gates()
    gates.add("redis", shut="not there")
    pool = Pool("pool", child("c", steady(), requires=("redis",)), max_children=1)
    async with running(Tree(pool, gates=gates)):
        assert await pool.start_child() is None
        (entry,) = pool.which_children()
        assert entry.handle is not None
        assert (entry.state, entry.handle.is_alive, entry.handle.incarnation) == ("held", False, 1)
        await pool.terminate_child(entry.handle)
        assert pool.which_children() == []
