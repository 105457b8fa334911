"""Mailboxes of supervised children: what becomes of messages, askers and senders (lines 124 to 129 of the list)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock
from worlds import PLAIN, child, of_kind

from penstock.runtime import AskTimeout, Deadlock, Mailbox, MailboxClosed, Overflow, Overloaded, PeerDied, Reply
from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    Gates,
    Intensity,
    LifecycleEvent,
    LifecycleKind,
    Plan,
    Pool,
    Restart,
    RestartLimitExceeded,
    Subscription,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import Misbehaved, bad_starter, naughty, running, shut, steady

NEVER_AGAIN = Intensity(0, 1.0)


@frozen
class Request:
    what: str
    reply: Reply[str]


def reads(box: Mailbox[Any], work: Callable[[Any], Any]) -> Body:
    """Calls `work` with each message; what that raises is a crash."""

    async def body(child: Child) -> None:
        child.started()
        async with box.receive() as inbox:
            async for message in inbox:
                work(message)
                await trio.lowlevel.checkpoint()

    return body


def state(tree: Tree, path: str) -> str:
    view = tree.snapshot().find(path)
    return "gone" if view is None else view.state


def lost(events: Subscription) -> list[LifecycleEvent]:
    return of_kind(events.drain(), LifecycleKind.MAIL_LOST)


# 124 -----------------------------------------------------------------------------------------------------------------


async def test_own_124_after_a_crash_the_next_message_is_read(autojump_clock: MockClock) -> None:
    """Of three that are queued the first crashes its reader; after the restart the second is received, then the third.

    (At most once: a message that was taken is the reader's, and what must not be lost is acknowledged where it came
    from.)
    """
    box: Mailbox[int] = Mailbox("orders", 10)
    seen: list[tuple[int, float]] = []

    def work(number: int) -> None:
        seen.append((number, trio.current_time()))
        if number == 1:
            raise Misbehaved

    for number in (1, 2, 3):
        box.offer(number)
    async with running(Tree(Supervisor("app", [child("a", reads(box, work), mailboxes=[box])]))) as tree:
        await trio.sleep(0.5)
        assert state(tree, "app/a") == "backoff"
        assert (box.statistics().depth, box.is_closed) == (2, False)
        await trio.sleep(5)
    assert seen == [(1, 0), (2, 1), (3, 1)]
    counted = box.statistics()
    assert (counted.received, counted.depth, counted.undelivered, counted.dropped) == (3, 0, 0, 0)


async def test_own_124_what_is_queued_outlives_holds_and_restarts_of_the_supervisor(autojump_clock: MockClock) -> None:
    """The queue stays while its reader is held by a gate, and while the whole supervisor above is started anew."""
    box: Mailbox[int] = Mailbox("orders", 10)
    seen: list[int] = []
    gates = Gates()
    gate = gates.add("redis")
    reader = child("a", reads(box, seen.append), mailboxes=[box], requires=["redis"])
    inner = Supervisor("inner", [reader, child("bad", naughty(3.0))], intensity=NEVER_AGAIN)
    tree = Tree(Supervisor("app", [inner.spec(backoff=PLAIN)]), gates=gates)
    async with running(tree):
        with shut(gate):
            await trio.sleep(1)
            box.offer(1)
            await trio.sleep(1)
            assert (state(tree, "app/inner/a"), box.statistics().depth) == ("held", 1)
        await trio.sleep(0.5)
        assert seen == [1]
        await trio.sleep_until(3.5)
        assert state(tree, "app/inner") == "backoff"
        box.offer(2)
        await trio.sleep_until(4.5)
    assert seen == [1, 2]


# 125 -----------------------------------------------------------------------------------------------------------------


async def test_own_125_senders_wait_while_the_reader_is_in_backoff_and_not_without_end(
    autojump_clock: MockClock,
) -> None:
    """Full mailbox, reader in a backoff of a minute: senders wait, each gets `Overloaded` after its bounded wait, and
    that is counted; an `offer` does not wait, and is counted as a drop."""
    box: Mailbox[int] = Mailbox("orders", 2, wait_within=5.0)
    slow = Backoff(minimum=60.0, maximum=60.0, jitter=0.0)
    seen: list[int] = []

    def work(number: int) -> None:
        seen.append(number)
        if number == 0:
            raise Misbehaved

    refused: list[tuple[int, float]] = []

    async def send(number: int, at: float) -> None:
        await trio.sleep_until(at)
        with pytest.raises(Overloaded, match=r"mailbox orders \(capacity 2\).*within 5 s") as caught:
            await box.tell(number)
        assert caught.value.mailbox == "orders"
        refused.append((number, trio.current_time()))

    spec = child("a", reads(box, work), backoff=slow, mailboxes=[box])
    async with running(Tree(Supervisor("app", [spec]))) as tree:
        box.offer(0)
        await trio.sleep(1)
        assert state(tree, "app/a") == "backoff"
        box.offer(1)
        box.offer(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 3, 2.0)
            nursery.start_soon(send, 4, 4.0)
            await trio.sleep_until(6)
            assert box.statistics().senders_waiting == 2
            assert not box.offer(5)
        assert sorted(refused) == [(3, 7), (4, 9)]
        counted = box.statistics()
        assert (counted.refused, counted.dropped, counted.senders_waiting) == (2, 1, 0)
        view = tree.snapshot().find("app/a")
        assert view is not None
        assert [each.refused for each in view.mailboxes] == [2]
        await trio.sleep_until(61)
    assert seen == [0, 1, 2]


async def test_own_125_a_reader_that_is_back_in_time_lets_the_senders_in(autojump_clock: MockClock) -> None:
    """A backoff that is shorter than the wait costs the sender time, and no message."""
    box: Mailbox[int] = Mailbox("orders", 1, wait_within=5.0)
    seen: list[int] = []

    def work(number: int) -> None:
        seen.append(number)
        if number == 0:
            raise Misbehaved

    async with running(Tree(Supervisor("app", [child("a", reads(box, work), mailboxes=[box])]))):
        box.offer(0)
        await trio.sleep(0.5)
        for number in (1, 2, 3):
            await box.tell(number)
        assert trio.current_time() == 1
        await trio.sleep(1)
    assert seen == [0, 1, 2, 3]
    assert box.statistics().refused == 0


@pytest.mark.parametrize(("overflow", "depth"), [(Overflow.REFUSE, [1]), (Overflow.DROP_OLDEST, [2])])
async def test_own_125_other_policies_do_not_wait(
    overflow: Overflow, depth: list[int], autojump_clock: MockClock
) -> None:
    """REFUSE says no at once; DROP_OLDEST gives up the oldest, to the hook. Both are counted."""
    given: list[int] = []
    box: Mailbox[int] = Mailbox(
        "orders", 1, overflow=overflow, on_undelivered=lambda messages, reason: given.extend(messages)
    )
    tree = Tree(Supervisor("app", [child("a", naughty(0.0), backoff=Backoff(60.0, 60.0), mailboxes=[box])]))
    async with running(tree):
        await trio.sleep(1)
        await box.tell(1)
        if overflow is Overflow.REFUSE:
            with pytest.raises(Overloaded):
                await box.tell(2)
            assert (box.statistics().refused, box.statistics().dropped, given) == (1, 0, [])
        else:
            await box.tell(2)
            assert (box.statistics().refused, box.statistics().dropped, given) == (0, 1, [1])
        assert trio.current_time() == 1
    assert given[-1:] == depth  # and what was left at the end went to the hook, too


# 126 -----------------------------------------------------------------------------------------------------------------


async def test_own_126_the_caller_hears_at_once_that_its_peer_died_and_of_what(autojump_clock: MockClock) -> None:
    """A handler that crashes two seconds into a call of a minute: the caller gets `PeerDied` then and there, with the
    handler's own error as the cause. A request behind it is answered by the next life."""
    box: Mailbox[Request] = Mailbox("oracle", 10)

    async def oracle(child: Child) -> None:
        child.started()
        async with box.receive() as inbox:
            async for request in inbox:
                await trio.sleep(2)
                if request.what == "fate":
                    raise Misbehaved("cannot see")
                request.reply.set(request.what.upper())

    heard: list[tuple[str, float]] = []

    async def ask(what: str) -> None:
        try:
            heard.append((await box.ask(lambda reply: Request(what, reply), 60.0), trio.current_time()))
        except PeerDied as died:
            heard.append((f"died of {died.__cause__}", trio.current_time()))

    async with running(Tree(Supervisor("app", [child("a", oracle, mailboxes=[box])]))), trio.open_nursery() as nursery:
        nursery.start_soon(ask, "fate")
        await trio.sleep(1)
        nursery.start_soon(ask, "luck")
    assert heard == [("died of cannot see", 2), ("LUCK", 2 + 1 + 2)]


@pytest.mark.parametrize("how", ["hold", "terminate", "stop", "return"])
async def test_own_126_so_it_does_however_the_handler_ends(how: str, autojump_clock: MockClock) -> None:
    """A handler that is held, stopped by a call or with its tree, or that just returns, is dead for its callers too;
    there is no cause then."""
    box: Mailbox[Request] = Mailbox("oracle", 10)
    gates = Gates()
    gate = gates.add("redis")

    async def oracle(child: Child) -> None:
        child.started()
        async with box.receive() as inbox:
            await inbox.next()
            await trio.sleep_until(2 if how == "return" else 600)

    app = Supervisor("app", [child("a", oracle, restart=Restart.TRANSIENT, requires=["redis"], mailboxes=[box])])
    tree = Tree(app, gates=gates)
    heard: list[float] = []

    async def ask() -> None:
        with pytest.raises(PeerDied) as caught:
            await box.ask(lambda reply: Request("?", reply), 60.0)
        assert caught.value.__cause__ is None
        heard.append(trio.current_time())

    async with running(tree), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(2)
        match how:
            case "hold":
                gate.shut("refused")
            case "terminate":
                await app.terminate_child("a")
            case "stop":
                tree.stop("enough")
    assert heard == [2]


# 127 -----------------------------------------------------------------------------------------------------------------


async def test_own_127_a_late_reply_harms_nobody_and_is_counted(autojump_clock: MockClock) -> None:
    """The caller has timed out when the answer comes: the server lives on, serves the next one, and the late reply is
    counted; so is one whose caller was cancelled."""
    box: Mailbox[Request] = Mailbox("oracle", 10)

    async def oracle(child: Child) -> None:
        child.started()
        async with box.receive() as inbox:
            async for request in inbox:
                await trio.sleep(5)
                request.reply.set(request.what.upper())

    async with running(Tree(Supervisor("app", [child("a", oracle, mailboxes=[box])]))) as tree:
        with pytest.raises(AskTimeout, match="no answer from oracle within 2 s"):
            await box.ask(lambda reply: Request("late", reply), 2.0)
        assert trio.current_time() == 2
        assert box.statistics().late_replies == 0
        await trio.sleep_until(6)
        assert box.statistics().late_replies == 1
        answer = await box.ask(lambda reply: Request("next", reply), 60.0)
        assert (answer, trio.current_time()) == ("NEXT", 11)
        with trio.move_on_after(1):
            await box.ask(lambda reply: Request("cancelled", reply), 60.0)
        await trio.sleep(10)
        assert box.statistics().late_replies == 2
        view = tree.snapshot().find("app/a")
        assert view is not None
        assert (view.state, view.incarnation, view.last_error) == ("running", 1, None)


# 128 -----------------------------------------------------------------------------------------------------------------


class Hook:
    """A drain hook that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[list[Any], str]] = []

    def __call__(self, messages: list[Any], reason: str) -> None:
        self.given.append((messages, reason))


def full(name: str, hook: Callable[[list[int], str], object] | None, *messages: int) -> Mailbox[int]:
    box: Mailbox[int] = Mailbox(name, max(len(messages), 1), on_undelivered=hook)
    for message in messages:
        assert box.offer(message)
    return box


async def test_own_128_when_the_budget_is_burnt_the_queued_go_to_the_hook(autojump_clock: MockClock) -> None:
    """The tree gives up: what is queued is handed over, once and in order; whoever waits for room or for an answer
    hears it at once, and so does whoever comes later."""
    hook = Hook()
    box: Mailbox[Any] = Mailbox("orders", 3, on_undelivered=hook)
    heard: list[tuple[str, float]] = []

    async def send(name: str) -> None:
        with pytest.raises(MailboxClosed, match="orders is closed: the tree app has ended"):
            await (box.tell(4) if name == "tell" else box.ask(lambda reply: Request("?", reply), 60.0))
        heard.append((name, trio.current_time()))

    for number in (1, 2, 3):
        box.offer(number)
    tree = Tree(Supervisor("app", [child("a", naughty(5.0), mailboxes=[box])], intensity=NEVER_AGAIN))
    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, "tell")
            nursery.start_soon(send, "ask")
            with pytest.raises(RestartLimitExceeded):
                await tree.run()
        told = list(events.drain())
    assert hook.given == [([1, 2, 3], "the tree app has ended")]
    assert sorted(heard) == [("ask", 5), ("tell", 5)]
    assert box.statistics().undelivered == 0
    assert not [event for event in told if event.kind is LifecycleKind.MAIL_LOST]
    with pytest.raises(MailboxClosed):
        await box.tell(5)
    assert not box.offer(5)


async def test_own_128_without_a_hook_they_are_counted_and_told(autojump_clock: MockClock) -> None:
    """Nothing vanishes silently: what no hook took is counted, and an event says whose mailbox lost how many."""
    box, empty = full("orders", None, 1, 2, 3), full("empty", None)
    tree = Tree(Supervisor("app", [child("a", naughty(5.0), mailboxes=[box, empty])], intensity=NEVER_AGAIN))
    with tree.subscribe() as events:
        with pytest.raises(RestartLimitExceeded):
            await tree.run()
        told = list(events.drain())
    (event,) = [event for event in told if event.kind is LifecycleKind.MAIL_LOST]
    assert (event.path, event.reason) == ("app/a", "3 in the mailbox orders: the tree app has ended")
    assert event.error is None
    assert told[(event.cause or 0) - 1].kind is LifecycleKind.SUPERVISOR_GAVE_UP
    assert told[-1].kind is LifecycleKind.TREE_STOPPED
    assert box.statistics().undelivered == 3


async def test_own_128_a_hook_that_raises_harms_nobody_and_is_told(autojump_clock: MockClock) -> None:
    """Its error ends up in an event with its traceback, and its messages are counted; the other mailboxes are closed,
    and the tree ends with its own error."""

    def breaks(messages: list[int], reason: str) -> None:
        raise OSError("the disk is full")

    hook = Hook()
    boxes = [full("one", hook, 1), full("two", breaks, 1, 2), full("three", hook, 3)]
    specs = [child("a", naughty(5.0), mailboxes=boxes[:2]), child("b", steady(), mailboxes=boxes[2:])]
    tree = Tree(Supervisor("app", specs, intensity=NEVER_AGAIN))
    with tree.subscribe() as events:
        with pytest.raises(RestartLimitExceeded):
            await tree.run()
        (event,) = lost(events)
    assert (event.path, event.reason) == ("app/a", "2 in the mailbox two: the tree app has ended")
    assert event.error is not None
    assert str(event.error) == "OSError: the disk is full"
    assert "in breaks" in event.error.traceback
    assert [messages for messages, _ in hook.given] == [[1], [3]]
    assert [box.is_closed for box in boxes] == [True] * 3
    assert [box.statistics().undelivered for box in boxes] == [0, 2, 0]


async def test_own_128_a_hook_that_raises_does_not_disturb_a_tree_that_runs(autojump_clock: MockClock) -> None:
    """The same while the tree lives: the call that deleted the child is answered, the siblings do not notice."""

    def breaks(messages: list[int], reason: str) -> None:
        raise OSError("the disk is full")

    app = Supervisor("app", [child("a", steady())])
    tree = Tree(app)
    async with running(tree):
        await app.start_child(child("b", steady(), mailboxes=[full("two", breaks, 1, 2)]))
        await app.terminate_child("b")
        with tree.subscribe() as events:
            await app.delete_child("b")
            removed, event = events.drain()
            assert (removed.kind, event.kind) == (LifecycleKind.CHILD_REMOVED, LifecycleKind.MAIL_LOST)
            assert (event.path, event.cause) == ("app/b", removed.sequence)
            assert event.error is not None
        view = tree.snapshot().find("app/a")
        assert view is not None
        assert (view.state, view.incarnation) == ("running", 1)


async def test_own_128_a_child_that_a_call_brought_loses_its_mailbox_when_it_is_deleted(
    autojump_clock: MockClock,
) -> None:
    """Crashed, held or stopped it keeps it; deleted, it is gone for good."""
    hook = Hook()
    box = full("orders", hook, 1, 2)
    app = Supervisor("app")
    async with running(Tree(app)):
        await app.start_child(child("a", naughty(1.0), mailboxes=[box]))
        await trio.sleep(1.5)
        assert app.which_child("a").state == "backoff"
        await app.terminate_child("a")
        assert (box.is_closed, hook.given) == (False, [])
        await app.delete_child("a")
        assert (box.is_closed, hook.given) == (True, [([1, 2], "app/a is gone")])


async def test_own_128_likewise_a_temporary_one_when_it_ends_or_does_not_come_up(autojump_clock: MockClock) -> None:
    """A temporary child's specification goes with it, and that of one whose start fails: both mailboxes are closed."""
    ended, failed = Hook(), Hook()
    app = Supervisor("app")
    async with running(Tree(app)):
        temporary = child("a", naughty(1.0), restart=Restart.TEMPORARY, mailboxes=[full("ended", ended, 1)])
        await app.start_child(temporary)
        assert ended.given == []
        with pytest.raises(Exception, match="b could not be started"):
            await app.start_child(child("b", bad_starter(1), mailboxes=[full("failed", failed, 2)]))
        assert failed.given == [([2], "app/b is gone")]
        await trio.sleep(2)
        assert ended.given == [([1], "app/a is gone")]


async def test_own_128_a_child_that_is_refused_does_not_touch_the_mailbox_of_who_is_there(
    autojump_clock: MockClock,
) -> None:
    """Adding an id that is present brings nobody, and takes nothing from anybody."""
    hook = Hook()
    box = full("orders", hook, 1)
    app = Supervisor("app", [child("a", steady(), mailboxes=[box])])
    async with running(Tree(app)):
        with pytest.raises(Exception, match="there is a child 'a'"):
            await app.start_child(child("a", steady(), mailboxes=[box]))
        assert (box.is_closed, hook.given) == (False, [])


async def test_own_128_a_shared_mailbox_is_closed_with_its_last_owner(autojump_clock: MockClock) -> None:
    """Two children name one mailbox: it lives as long as one of them is in the tree."""
    hook = Hook()
    box = full("orders", hook, 1)
    app = Supervisor("app")
    async with running(Tree(app)):
        for name in "ab":
            await app.start_child(child(name, steady(), mailboxes=[box]))
        for name, is_closed in (("a", False), ("b", True)):
            await app.terminate_child(name)
            await app.delete_child(name)
            assert box.is_closed is is_closed
    assert hook.given == [([1], "app/b is gone")]


async def test_own_128_a_child_of_the_plan_comes_back_with_its_supervisor_and_so_does_its_mailbox(
    autojump_clock: MockClock,
) -> None:
    """Deleted below a supervisor that may be started anew, it is not gone for good; below the root, which runs once,
    it is."""
    low, high = Hook(), Hook()
    inner = Supervisor("inner", [child("a", steady(), mailboxes=[full("low", low, 1)])])
    app = Supervisor("app", [inner.spec(), child("b", steady(), mailboxes=[full("high", high, 2)])])
    async with running(Tree(app)):
        for supervisor, name in ((inner, "a"), (app, "b")):
            await supervisor.terminate_child(name)
            await supervisor.delete_child(name)
        assert (low.given, high.given) == ([], [([2], "app/b is gone")])
    assert low.given == [([1], "the tree app has ended")]


async def test_own_128_a_sub_supervisor_that_gives_up_for_good_takes_all_mailboxes_below_along(
    autojump_clock: MockClock,
) -> None:
    """A temporary sub-supervisor burns its budget: the mailboxes two floors down are closed then, and the event names
    who lost what."""
    box = full("orders", None, 1, 2)
    low = Supervisor("low", [child("a", naughty(5.0), mailboxes=[box])], intensity=NEVER_AGAIN)
    middle = Supervisor("middle", [low.spec()], intensity=NEVER_AGAIN)
    app = Supervisor("app")
    tree = Tree(app)
    with tree.subscribe() as events:
        async with running(tree):
            await app.start_child(middle.spec(restart=Restart.TEMPORARY))
            await trio.sleep(4)
            assert not box.is_closed
            await trio.sleep(2)
            assert box.is_closed
            (event,) = lost(events)
            assert (event.path, event.reason) == ("app/middle/low/a", "2 in the mailbox orders: app/middle is gone")


async def test_own_128_children_that_calls_brought_go_with_the_life_of_their_supervisor(
    autojump_clock: MockClock,
) -> None:
    """After a restart of the supervisor its own children come back, and those added at run time do not: theirs are
    closed, and no others."""
    kept, gone = Hook(), Hook()
    inner = Supervisor("inner", [child("a", naughty(5.0), mailboxes=[full("kept", kept, 1)])], intensity=NEVER_AGAIN)
    async with running(Tree(Supervisor("app", [inner.spec(backoff=PLAIN)]))) as tree:
        await inner.start_child(child("b", steady(), mailboxes=[full("gone", gone, 2)]))
        await trio.sleep(6.5)
        assert (state(tree, "app/inner"), state(tree, "app/inner/b")) == ("running", "gone")
        assert (kept.given, gone.given) == ([], [([2], "app/inner has ended")])


async def test_own_128_the_mailbox_of_a_pool_s_template_lives_as_long_as_the_pool(autojump_clock: MockClock) -> None:
    """The children of a pool come and go, and share what is in their template."""
    hook = Hook()
    box = full("orders", hook, 1)
    pool = Pool("pool", child("worker", steady(), restart=Restart.TEMPORARY, mailboxes=[box]))
    app = Supervisor("app", [pool.spec(restart=Restart.TEMPORARY)])
    async with running(Tree(app)):
        handle = await pool.start_child()
        assert handle is not None
        await pool.terminate_child(handle)
        assert not box.is_closed
        await app.terminate_child("pool")
        assert hook.given == [([1], "app/pool is gone")]


async def test_own_128_a_specification_that_is_replaced_lets_go_of_what_the_new_one_does_not_name(
    autojump_clock: MockClock,
) -> None:
    """A change of plan: the mailbox that both name stays open; the one that only the old one named is closed as soon as
    the incarnation that was started from the old one, and may still read it, has left."""
    both, old = Hook(), Hook()
    shared, single = full("shared", both, 1), full("single", old, 2)
    app = Supervisor("app", [child("a", steady(), mailboxes=[shared, single])])
    async with running(Tree(app)):
        await app.reload(Plan([child("a", steady(), mailboxes=[shared])]))
        assert (both.given, old.given) == ([], [])
        await app.terminate_child("a")
        assert (both.given, old.given) == ([], [([2], "app/a was replaced")])
    assert both.given == [([1], "the tree app has ended")]


@pytest.mark.parametrize("end", ["stop", "cancel", "never run"])
async def test_own_128_however_a_tree_ends_no_sender_is_left_waiting(end: str, autojump_clock: MockClock) -> None:
    """Stopped, cancelled from outside, or stopped before it ran: the mailboxes are closed, whoever waits is told."""
    hook = Hook()
    box = full("orders", hook, 1)
    tree = Tree(Supervisor("app", [child("a", steady(), mailboxes=[box])]))
    heard: list[float] = []

    async def send() -> None:
        with pytest.raises(MailboxClosed):
            await box.tell(2)
        heard.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(1)
        if end == "never run":
            tree.stop("enough")
        with trio.move_on_after(1) if end == "cancel" else trio.CancelScope():
            async with trio.open_nursery() as trees:
                trees.start_soon(tree.run)
                if end == "stop":
                    await trio.sleep(1)
                    tree.stop("enough")
    assert heard == [1 if end == "never run" else 2]
    assert hook.given == [([1], "the tree app has ended")]


# 129 -----------------------------------------------------------------------------------------------------------------


async def test_own_129_an_actor_that_calls_itself_hears_of_the_deadlock(autojump_clock: MockClock) -> None:
    """Within the call's time-out, here at once; the error names it, and it works on."""
    box: Mailbox[Request] = Mailbox("narcissus", 10)
    heard: list[tuple[str, float]] = []

    async def narcissus(child: Child) -> None:
        child.started()
        async with box.receive() as inbox:
            async for request in inbox:
                with pytest.raises(Deadlock, match="narcissus itself") as caught:
                    await box.ask(lambda reply: Request("?", reply), 10.0)
                assert caught.value.mailboxes == ("narcissus",)
                request.reply.set("fair")

    async with running(Tree(Supervisor("app", [child("a", narcissus, mailboxes=[box])]))):
        heard.append((await box.ask(lambda reply: Request("who", reply), 60.0), trio.current_time()))
    assert heard == [("fair", 0)]


async def test_own_129_two_that_call_each_other_with_full_mailboxes_hear_of_the_deadlock(
    autojump_clock: MockClock,
) -> None:
    """Both mailboxes are full, both actors call the other: within the time-out of the call one of them gets the error,
    which names both; the other goes on."""
    one, two = Mailbox[Request]("one", 1), Mailbox[Request]("two", 1)
    heard: list[tuple[str, ...]] = []
    answers: list[str] = []

    def calls(mine: Mailbox[Request], peer: Mailbox[Request]) -> Body:
        async def body(child: Child) -> None:
            child.started()
            async with mine.receive() as inbox:
                await trio.sleep(1)
                try:
                    answers.append(await peer.ask(lambda reply: Request(f"from {mine.name}", reply), 10.0))
                except Deadlock as deadlock:
                    heard.append(deadlock.mailboxes)
                async for request in inbox:
                    request.reply.set(request.what)

        return body

    for box in (one, two):
        box.offer(Request("note", Reply(box)))
    specs = [child("one", calls(one, two), mailboxes=[one]), child("two", calls(two, one), mailboxes=[two])]
    async with running(Tree(Supervisor("app", specs))) as tree:
        await trio.sleep(11)
        assert [each.incarnation for each in tree.snapshot().root.children] == [1, 1]
    assert heard in ([("one", "two")], [("two", "one")])
    assert answers == [f"from {'one' if heard[0][0] == 'two' else 'two'}"]


async def test_own_129_a_deadlock_that_is_none_of_the_actor_s_making_ends_in_its_crash(
    autojump_clock: MockClock,
) -> None:
    """Who does not catch it crashes with it: a restart with both names in the last error, instead of a standstill."""
    one, two = Mailbox[Request]("one", 1), Mailbox[Request]("two", 1)

    def asks_back(mine: Mailbox[Request], peer: Mailbox[Request]) -> Body:
        async def body(child: Child) -> None:
            child.started()
            async with mine.receive() as inbox:
                async for request in inbox:
                    answer = await peer.ask(lambda reply: Request("and you", reply), 10.0)
                    request.reply.set(answer)

        return body

    specs = [child("one", asks_back(one, two), mailboxes=[one]), child("two", asks_back(two, one), mailboxes=[two])]
    async with running(Tree(Supervisor("app", specs))) as tree:
        with pytest.raises(PeerDied):
            await one.ask(lambda reply: Request("hello", reply), 60.0)
        assert trio.current_time() == 10
        await trio.sleep(0.5)
        errors = [each.last_error.message for each in tree.snapshot().root.children if each.last_error is not None]
        assert any("deadlock" in error and "one" in error and "two" in error for error in errors)
