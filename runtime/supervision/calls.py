"""What a running supervisor is asked to do: take in a child, stop, restart or delete one, go over to another plan.

Functions over a core: each takes one call and sees to it that it is answered, once. Source: the API of OTP's
``supervisor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from .errors import (
    AlreadyPresent,
    AlreadyStarted,
    ChildIsStuck,
    InvalidSpec,
    NotFound,
    NotRunning,
    PoolFull,
    StartFailed,
    StillRestarting,
    StillRunning,
    SupervisionError,
)
from .events import LifecycleKind, Report
from .messages import (
    AddChild,
    AdoptChild,
    Answer,
    Call,
    DeleteChild,
    Phase,
    Refuse,
    Reload,
    RestartChild,
    Status,
    TakeOver,
    TerminateChild,
)
from .reconciler import CALLED_OFF
from .spec import Restart, Strategy, check_significant

if TYPE_CHECKING:
    from .core import Core
    from .state import ChildState

__all__ = ["refuse_all", "refuse_leavers", "refuse_start", "take"]


def take(core: Core, call: Call) -> None:
    """Take one call."""
    if core.is_stopping:
        core.emit(Refuse(call.ticket, NotRunning("the supervisor is stopping: it takes no calls")))
        return
    match call:
        case AddChild():
            _add(core, call)
        case TerminateChild():
            _terminate(core, call)
        case RestartChild():
            _restart(core, call)
        case DeleteChild():
            _delete(core, call)
        case Reload():
            _reload(core, call)


def _add(core: Core, call: AddChild) -> None:
    present = core.children.get(call.spec.id)
    if present is not None:
        core.emit(Refuse(call.ticket, _in_the_way(present), id=present.spec.id))
        return
    try:
        check_significant(call.spec, core.plan.auto_shutdown)
    except InvalidSpec as error:
        core.emit(Refuse(call.ticket, error))
        return
    if core.max_children is not None and len(core.children) >= core.max_children:
        text = f"the pool {core.path} has {core.max_children} children, which is all that it may have"
        core.emit(Refuse(call.ticket, PoolFull(text)))
        return
    child = core.children.append(call.spec)
    child.args, child.starter, child.is_new = call.args, call.ticket, True
    core.emit(AdoptChild(call.spec))
    if core.phase is Phase.STARTING:
        core._ahead.append(child)  # it has its turn behind the others
        return
    child.begun = True
    _from_now_on(core, child)


def _from_now_on(core: Core, child: ChildState) -> None:
    """Let it start as soon as its gates are open and have settled."""
    child.not_before = max(core.now, core.settled_at(child))
    child.waited = child.not_before > core.now
    core.wake(child)
    core.tell_held(child)


def _in_the_way(child: ChildState) -> SupervisionError:
    name = child.spec.id
    if child.status is Status.RUNNING or (child.status is Status.STARTING and not child.failing):
        return AlreadyStarted(f"there is a child {name!r}, and it runs")
    return AlreadyPresent(f"there is a child {name!r}, {_condition(child)}; restart it, or delete it first")


def _condition(child: ChildState) -> str:
    if child.status is Status.STOPPING:
        return "which is leaving"
    if not child.goal:
        return "stopped"
    return "held by a gate" if child.held_since is not None else "being restarted"


def _terminate(core: Core, call: TerminateChild) -> None:
    child = core.children.get(call.id)
    if child is None:
        core.emit(Refuse(call.ticket, NotFound(f"there is no child {call.id!r}")))
        return
    if call.incarnation is not None and call.incarnation < child.was_ready:
        core.emit(Answer(call.ticket))  # that one is dead; what runs now is another
        return
    child.leavers.append(call.ticket)
    was_wanted = child.goal
    core.put_down(child)
    if child.stuck:
        refuse_leavers(core, child)
    elif child.is_up and core.strategy is Strategy.ONE_FOR_ONE:
        # Nobody depends on it: it need not wait for others who are leaving.
        core.order_stop(child, CALLED_OFF, drain=True)
    elif child.status is Status.DOWN:
        core.answer_leave(child)
        if child.starter is not None:
            refuse_start(core, child, None, "it was terminated before it was ready", is_over=False)
        elif child.is_temporary or core.is_pool:
            core.remove(child, "terminated by a call")
        if was_wanted and not child.gone:
            core.report(LifecycleKind.CHILD_CALLED_OFF, child, reason="terminated by a call")


def _restart(core: Core, call: RestartChild) -> None:
    child = _stopped(core, call)
    if child is None:
        return
    child.starter, child.goal, child.start_cause = call.ticket, True, None
    child.tallies.forget()
    if core.phase is Phase.STARTING and not child.begun:
        return  # its turn is still to come
    if core.phase is Phase.STARTING and child not in core._ahead:
        core._ahead.appendleft(child)  # its turn was passed by while it was stopped: it has it now, before all others
    child.begun = True
    _from_now_on(core, child)


def _delete(core: Core, call: DeleteChild) -> None:
    child = _stopped(core, call)
    if child is not None:
        core.remove(child, "deleted by a call")
        core.emit(Answer(call.ticket))


def _stopped(core: Core, call: RestartChild | DeleteChild) -> ChildState | None:
    """The child of a call that takes a stopped one; None, and the call is refused, if there is no such child."""
    child = core.children.get(call.id)
    error = NotFound(f"there is no child {call.id!r}") if child is None else _not_stopped(child)
    if error is not None:
        core.emit(Refuse(call.ticket, error))
        return None
    return child


def _not_stopped(child: ChildState) -> SupervisionError | None:
    """What keeps a child from being restarted or deleted by a call; None if it is stopped."""
    if child.status is Status.DOWN and not child.goal:
        return None
    if child.status is Status.DOWN or (child.status is Status.STARTING and child.failing):
        return StillRestarting(f"the child {child.spec.id!r} is {_condition(child)}; terminate it first")
    return StillRunning(f"the child {child.spec.id!r} is {child.status.value}; terminate it first")


def _reload(core: Core, call: Reload) -> None:
    if core.phase is not Phase.RUNNING:
        core.emit(Refuse(call.ticket, NotRunning("the supervisor is still starting; reload it when it is up")))
        return
    plan = evolve(core.plan, **call.flags) if call.plan is None else call.plan
    changes = core.plan.changes(plan)
    core.budget = core.budget.change(plan.intensity)
    core.plan = plan
    for spec in plan.children:
        child = core.children.get(spec.id)
        if child is None:
            child = core.children.append(spec)
            child.goal, child.begun = False, True
        else:
            child.spec = spec
            core.watch_hold(child)
    core.children.reorder(spec.id for spec in plan.children)
    for child in list(core.children):
        core.touch(child)
        if child.status is Status.DOWN and core.held_by(child) is None:
            child.held_since = None
        elif child.status is Status.DOWN:
            core.tell_held(child)
    core.emit(TakeOver(plan, call.template))
    if changes:
        core.emit(Report(kind=LifecycleKind.PLAN_CHANGED, subject="", reason=str(changes)))
    core.emit(Answer(call.ticket, value=changes))


# Bad news ------------------------------------------------------------------------------------------------------------


def refuse_start(
    core: Core, child: ChildState, error: BaseException | None, why: str, *, is_over: bool, name_taken: bool = False
) -> None:
    """The start that a call waits for has come to nothing; a child that the call brought is gone again.

    `is_over`: it has returned before it was ready, which for other than permanent children is a step that is done.
    `name_taken`: it was not run; its own error is the answer.
    """
    ticket, is_new, child.starter, child.is_new = child.starter, child.is_new, None, False
    core.put_down(child)
    done = is_over and child.spec.restart is not Restart.PERMANENT
    if done:
        core.emit(Answer(ticket))
    elif name_taken and isinstance(error, AlreadyStarted):
        core.emit(Refuse(ticket, error))
    else:
        failed = StartFailed(f"{core.label(child)} could not be started: {why}")
        failed.spec, failed.__cause__ = child.spec, error
        core.emit(Refuse(ticket, failed))
    if child.status is Status.DOWN and (core.is_pool or child.is_temporary or (is_new and not done)):
        core.answer_leave(child)
        core.remove(child, why)


def refuse_leavers(core: Core, child: ChildState) -> None:
    """Tell the calls that wait for `child` to leave that it does not."""
    late = f"has not left within {child.spec.leaves_within:g} s"
    why = "waits for somebody below it who does not leave" if child.is_nested else late
    text = f"{core.label(child)} was cancelled and {why}; it is reported"
    core.answer_leave(child, ChildIsStuck(text))


def refuse_all(core: Core) -> None:
    """The supervisor stops: tell the calls that wait for a start, or for the turn of a stop."""
    for child in core.children:
        ticket, child.starter = child.starter, None
        if ticket is not None:
            core.emit(Refuse(ticket, NotRunning(f"the supervisor stopped before {child.spec.id} was up")))
        if child.is_up and child.leavers:
            core.answer_leave(child, NotRunning(f"the supervisor stops, and {child.spec.id} with it"))
