"""The boundary of a child: whatever its body does, the supervisor lives, and nothing is lost."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import trio
import trio.lowlevel
import trio.testing
from trees import child, look, make, of_kind

from penstock.runtime.supervision import Child, Intensity, LifecycleKind, Restart, StartFailed
from penstock.runtime.supervision.outcome import ErrorInfo, outcome_of
from penstock.runtime.testing import Diary, running


@dataclass
class Unhashable(Exception):
    """As every dataclass that is an error."""

    code: int


async def unhashable(child: Child) -> None:
    raise Unhashable(7)


async def leaves_a_scope_open(child: Child) -> None:
    trio.CancelScope().__enter__()


async def deep_group(child: Child) -> None:
    error: Exception = KeyError("at the bottom")
    for _ in range(5000):
        error = ExceptionGroup("one more", [error])
    raise error


async def cancelled_inside_a_group(child: Child) -> None:
    try:
        await trio.sleep_forever()
    except trio.Cancelled as cancelled:
        raise BaseExceptionGroup("both", [cancelled, ValueError("the real one")]) from None


@pytest.mark.parametrize(
    ("body", "error"),
    [(unhashable, "Unhashable"), (leaves_a_scope_open, "RuntimeError"), (deep_group, "KeyError")],
)
async def test_an_error_of_any_shape_is_a_crash_and_no_more(
    autojump_clock: trio.testing.MockClock, body: object, error: str
) -> None:
    diary = Diary()

    async def bad(child: Child) -> None:
        if child.incarnation > 1:
            child.started()
            await trio.sleep_forever()
        child.started()
        await trio.sleep(1)
        await body(child)  # type: ignore[operator]

    async with running(make(child("good", diary.of("good")), child("bad", bad))) as tree:
        await trio.sleep(3)
        view = look(tree, "app/bad")
        assert (view.state, view.incarnation) == ("running", 2)
        assert view.last_error is not None
        assert view.last_error.type.endswith(error)
        assert diary.take() == "+good"
    assert diary.take() == "-good"


async def test_an_error_beside_a_cancelled_is_told_of_a_child_that_was_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(child: Child) -> None:
        child.started()
        await cancelled_inside_a_group(child)

    tree = make(child("torn", body))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        (stopped,) = of_kind(list(events.drain()), LifecycleKind.CHILD_STOPPED)
    assert stopped.error is not None
    assert stopped.error.type == "ValueError"


def test_what_ends_the_process_is_found_behind_a_cancelled_too() -> None:
    async def masked() -> None:
        with trio.CancelScope() as scope:
            try:
                scope.cancel()
                try:
                    raise KeyboardInterrupt
                finally:
                    await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                seen.append(outcome_of(cancelled))
                raise

    seen: list[object] = []
    trio.run(masked)
    assert getattr(seen[0], "fatal", False)


async def test_a_child_that_swallows_its_cancel_and_returns_has_stopped(autojump_clock: trio.testing.MockClock) -> None:
    async def swallows(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return  # rude, but over

    async with running(make(child("rude", swallows))):
        pass
    assert trio.current_time() == 0


async def test_a_late_started_of_a_child_that_was_cancelled_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def late(child: Child) -> None:
        try:
            await trio.sleep_forever()
        finally:
            child.started()

    tree = make(child("late", late))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.testing.wait_all_tasks_blocked()
        tree.stop("enough")
    assert not await tree.ready()


async def test_what_ends_the_process_outweighs_a_cancel_from_outside(autojump_clock: trio.testing.MockClock) -> None:
    """As everywhere in trio: an error is not lost because somebody cancelled at the same time."""

    async def exits(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(3)

    tree = make(child("exits", exits))
    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        with trio.CancelScope() as scope:
            async with running(tree):
                scope.cancel()
                await trio.lowlevel.checkpoint()


async def test_a_permanent_child_that_never_says_started_and_returns_fails_the_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def forgetful(child: Child) -> None:
        await trio.sleep(1)

    with pytest.raises(StartFailed, match=r"forgetful.*returned before it was ready"):
        await make(child("forgetful", forgetful)).run()


class Ballast:
    """What a crash must not keep alive."""


async def test_a_crash_leaves_no_cycle_that_keeps_its_frames(autojump_clock: trio.testing.MockClock) -> None:
    """In a storm of restarts, what the garbage collector must find is what piles up."""
    kept: list[weakref.ref[Ballast]] = []

    async def heavy(child: Child) -> None:
        ballast = Ballast()
        kept.append(weakref.ref(ballast))
        child.started()
        await trio.sleep(1)
        raise RuntimeError("again")

    gc.disable()
    try:
        async with running(make(child("heavy", heavy, restart=Restart.TRANSIENT), intensity=Intensity(100, 60.0))):
            await trio.sleep(30)
            assert len(kept) > 3
            assert [ref() for ref in kept[:-1]] == [None] * (len(kept) - 1)
    finally:
        gc.enable()


class Unprintable(Exception):
    """Neither its text nor its traceback can be had."""

    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_printed_is_taken_down_all_the_same() -> None:
    info = ErrorInfo.of(Unprintable())
    assert info.type.endswith("Unprintable")
    assert "cannot be shown" in info.message
    assert "RuntimeError" in info.traceback
