"""Specifications and flags: their defaults, and what is refused, with which words (lines 16 to 27 of the list)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from worlds import LEAVING, PLAIN, child, handles, idle, states

from penstock.runtime.mailbox import Mailbox
from penstock.runtime.supervision import (
    CUT,
    AutoShutdown,
    Backoff,
    ChildSpec,
    Decay,
    Directive,
    Intensity,
    InvalidSpec,
    Kind,
    NotFound,
    Plan,
    Pool,
    Restart,
    Rule,
    StartFailed,
    Strategy,
    Supervisor,
    Tree,
    check_specs,
)
from penstock.runtime.testing import Diary, running, steady

MORTAL = [Restart.TRANSIENT, Restart.TEMPORARY]


# 16, 17: what a specification reads like -----------------------------------------------------------------------------


@pytest.mark.parametrize("by_call", [False, True])
async def test_otp_016_a_spec_of_id_and_body_reads_back_with_the_defaults(
    by_call: bool, autojump_clock: MockClock
) -> None:
    """Only id and start are given: permanent, 5 s, worker; a supervisor has no limit; an unknown id is not-found."""
    given = [{"id": "a", "body": steady()}, {"id": "b", "body": steady(), "kind": Kind.SUPERVISOR}]
    nested = Supervisor("c").spec()
    root = Supervisor("app", [] if by_call else [*given, nested])
    async with running(Tree(root)):
        if by_call:
            for each in (*given, nested):
                await root.start_child(each)
        worker, supervisor = root.get_childspec("a"), root.get_childspec("b")
        assert (worker.restart, worker.stop_within, worker.kind) == (Restart.PERMANENT, 5.0, Kind.WORKER)
        assert (worker.significant, worker.name, worker.requires, worker.policy) == (False, None, (), ())
        assert worker == ChildSpec(id="a", body=given[0]["body"])
        assert (supervisor.restart, supervisor.stop_within) == (Restart.PERMANENT, math.inf)
        assert root.get_childspec("c") == nested
        assert (nested.kind, nested.restart, nested.stop_within) == (Kind.SUPERVISOR, Restart.PERMANENT, math.inf)
        with pytest.raises(NotFound, match="'d'"):
            root.get_childspec("d")


@pytest.mark.parametrize("restart", Restart)
async def test_otp_017_each_child_of_a_pool_reads_back_as_the_template(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """Three children of a pool: the spec of each, by handle, is the template with the defaults; a stranger has none."""
    given = {"id": "kind", "body": idle, "restart": restart}
    pool, other = Pool("pool", given), Pool("other", given)
    root = Supervisor("app", [pool.spec(), other.spec(), child("a")])
    async with running(Tree(root)):
        template = ChildSpec(id="kind", body=idle, restart=restart)
        children = [await pool.start_child(number) for number in range(3)]
        assert template.stop_within == 5.0
        for handle in children:
            assert handle is not None
            assert pool.get_childspec(handle) == template
        stranger = await other.start_child("x")
        assert stranger is not None
        assert other.get_childspec(stranger) == template
        for strange in (stranger, handles(root)["a"]):
            assert strange is not None
            with pytest.raises(NotFound):
                pool.get_childspec(strange)
        await other.terminate_child(stranger)  # a dead one is a stranger, too
        with pytest.raises(NotFound):
            pool.get_childspec(stranger)
        assert children[0] is not None
        await pool.terminate_child(children[0])
        with pytest.raises(NotFound):
            pool.get_childspec(children[0])


# 18, 19: specifications that are none --------------------------------------------------------------------------------

_X: dict[Any, Any] = {"id": "x", "body": idle}

# An unknown key is ignored by OTP, and refused here: a restart type under a misspelt key would silently be the default.
NO_SPECS: dict[str, tuple[Any, str]] = {
    "no id": ({"body": idle}, r"a child specification needs 'id'; it has 'body'"),
    "no body": ({"id": "x"}, r"a child specification needs 'body'; it has 'id'"),
    "nothing": ({}, r"a child specification needs 'id'; it has none"),
    "a text": ("x", r"a child specification is a ChildSpec or a mapping, not 'x'"),
    "none": (None, r"a child specification is a ChildSpec or a mapping, not None"),
    "a tuple": (("x", idle), r"a child specification is a ChildSpec or a mapping, not \('x', "),
    "a supervisor": (
        Supervisor("x"),
        r"<Supervisor x of 0, one_for_one> is a supervisor, not its specification: write \.spec\(\) behind it",
    ),
    "a misspelt key": (
        {"id": "x", "body": idle, "restrat": 1},
        r"there is no field 'restrat' .*; did you mean 'restart'",
    ),
    "an unknown key": (
        {"id": "x", "body": idle, "zzz": 1},
        r"there is no field 'zzz' .*; known: id, body, kind, restart",
    ),
    "a key that is no text": ({**_X, 7: 1}, r"there is no field 7 in a child specification"),
}


async def _refused_everywhere(value: Any, words: str) -> None:
    """Checked alone, planned, made by a builder, added by a call: each time the same error, and nothing is started."""
    diary = Diary()
    good = child("a", diary.of("a"))
    with pytest.raises(InvalidSpec, match=words):
        check_specs([value])
    with pytest.raises(InvalidSpec, match=words):
        Supervisor("app", [good, value])
    with pytest.raises(InvalidSpec, match=words):
        await Tree(Supervisor("app", lambda: [good, value])).run()
    assert diary.take() == ""
    root = Supervisor("app", [good])
    async with running(Tree(root)):
        before = handles(root)
        with pytest.raises(InvalidSpec, match=words):
            await root.start_child(value)
        assert handles(root) == before
        assert states(root) == {"a": "running"}


@pytest.mark.parametrize("what", NO_SPECS)
async def test_otp_018_what_is_no_specification_is_refused_with_words_of_its_own(
    what: str, autojump_clock: MockClock
) -> None:
    """No id, no start, not a spec at all: each fails with an error that names just that."""
    value, words = NO_SPECS[what]
    await _refused_everywhere(value, words)
    others = [each for name, (_, each) in NO_SPECS.items() if name != what]
    with pytest.raises(InvalidSpec) as caught:
        ChildSpec.of(value)
    assert not any(re.search(each, str(caught.value)) for each in others)


NAN = float("nan")
BAD_FIELDS: list[tuple[str, Any, str]] = [
    # field, value, what the error must show of the value
    ("id", 7, "7"),
    ("id", "", "''"),
    ("id", "a/b", "'a/b'"),
    ("id", " x", "' x'"),
    ("body", "mod:fun", "'mod:fun'"),
    ("body", None, "None"),
    ("restart", "permanent", "'permanent'"),
    ("restart", None, "None"),
    ("stop_within", -1, "-1"),
    ("stop_within", -0.001, "-0.001"),
    ("stop_within", "kill", "'kill'"),
    ("stop_within", None, "None"),
    ("stop_within", True, "True"),
    ("stop_within", NAN, "nan"),
    ("kind", "worker", "'worker'"),
    ("kind", Restart.PERMANENT, "Restart.PERMANENT"),
    ("name", "", "''"),
    ("name", 7, "7"),
    ("requires", "redis", "'redis'"),
    ("requires", 7, "7"),
    ("requires", [7], "7"),
    ("opens", "redis", "'redis'"),
    ("hold_within", -1, "-1"),
    ("start_within", -1, "-1"),
    ("start_within", None, "None"),
    ("drain_within", -1, "-1"),
    ("backoff", 1.0, "1.0"),
    ("policy", [ValueError], "ValueError"),
    ("policy", Rule(ValueError, Directive.STOP), "Rule("),
    ("progress_within", 0, "0"),
    ("progress_within", math.inf, "inf"),
    ("mailboxes", ["inbox"], "'inbox'"),
    ("mailboxes", Mailbox("inbox", 1), "Mailbox"),
]


@pytest.mark.parametrize(("field", "value", "shown"), BAD_FIELDS)
async def test_otp_019_one_bad_field_is_named_with_its_value(
    field: str, value: Any, shown: str, autojump_clock: MockClock
) -> None:
    """One bad field at a time, checked alone or added: the error names the field and the value."""
    spec = {"id": "x", "body": idle, field: value}
    await _refused_everywhere(spec, f"{field}.*{re.escape(shown)}")
    with pytest.raises(InvalidSpec, match=f"{field}.*{re.escape(shown)}"):
        ChildSpec(**spec)
    with pytest.raises(InvalidSpec, match=f"{field}.*{re.escape(shown)}"):
        Pool("pool", spec)


# 20, 21: combinations ------------------------------------------------------------------------------------------------

COMBINATIONS = list(itertools.product(Restart, [0, 1000, math.inf, CUT], Kind))


def _combined(combination: tuple[Restart, Any, Kind]) -> ChildSpec:
    restart, limit, kind = combination
    name = f"{restart.value} {limit} {kind.value}"
    return ChildSpec(id=name, body=steady(), restart=restart, stop_within=limit, kind=kind)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_otp_020_every_combination_of_type_limit_and_kind_passes(combination: tuple[Restart, Any, Kind]) -> None:
    """3 restart types by {0, 1000, none, kill} by {worker, supervisor}: each passes the check and is what it was."""
    spec = _combined(combination)
    assert check_specs([spec]) == (spec,)
    assert (spec.restart, spec.stop_within, spec.kind) == combination


async def test_otp_020_all_of_them_together_run(autojump_clock: MockClock) -> None:
    """All 24 together pass the check, too, come up, and leave."""
    specs = [_combined(each) for each in COMBINATIONS]
    assert len(specs) == 24
    assert check_specs(specs) == tuple(specs)
    root = Supervisor("app", specs)
    async with running(Tree(root)):
        assert set(states(root).values()) == {"running"}
        assert [root.get_childspec(each.id) for each in specs] == specs
    assert trio.current_time() == 0


@pytest.mark.parametrize("strategy", Strategy)
async def test_otp_021_two_specs_of_one_id_are_refused_before_anything_starts(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """Two specs have one id: duplicate-id, by the check and before anything is started."""
    diary = Diary()
    specs = [child("a", diary.of("a")), child("b", diary.of("b")), {"id": "b", "body": diary.of("b")}]
    with pytest.raises(InvalidSpec, match="two children have the id 'b'"):
        check_specs(specs)
    with pytest.raises(InvalidSpec, match="two children have the id 'b'"):
        Supervisor("app", specs, strategy=strategy)
    with pytest.raises(InvalidSpec, match="two children have the id 'b'"):
        Plan(specs, strategy)
    with pytest.raises(InvalidSpec, match="two children have the id 'b'"):
        await Tree(Supervisor("app", lambda: specs, strategy=strategy)).run()
    assert diary.take() == ""
    assert [each.id for each in check_specs(specs[:2])] == ["a", "b"]  # it is the third that is one too many


# 22: pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("templates", "shown"),
    [
        ([], "none"),
        (None, "None"),
        ([child("wheat"), child("rye")], "wheat, rye"),
        ([{"id": "wheat", "body": idle}, child("rye")], r"'wheat'.*, rye"),
    ],
)
def test_otp_022_a_pool_has_exactly_one_template(templates: Any, shown: str) -> None:
    """A pool of no template or of two is refused, naming the specs. (Before its start: it cannot be built.)"""
    with pytest.raises(InvalidSpec, match=f"exactly one template.*{shown}"):
        Pool("pool", templates)
    Pool("pool", child("wheat"))


def test_otp_022_a_supervisor_is_no_template() -> None:
    """One supervisor cannot be many: as a template it would run twice at a time, in one state."""
    with pytest.raises(InvalidSpec, match="the template 'inner' of a pool is a supervisor"):
        Pool("pool", Supervisor("inner", [child("a")]).spec())
    with pytest.raises(InvalidSpec, match="the template 'inner' of a pool is a supervisor"):
        Pool("pool", Pool("inner", child("a")).spec())


# 23 to 26: significant children --------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", MORTAL)
def test_otp_023_significant_under_never_is_a_bad_combination(restart: Restart) -> None:
    """`significant` with auto_shutdown never: the error of the check lists both values."""
    spec = child("a", restart=restart, significant=True)
    with pytest.raises(InvalidSpec, match=r"'a' has significant=True under auto_shutdown=AutoShutdown\.NEVER"):
        check_specs([spec], AutoShutdown.NEVER)
    with pytest.raises(InvalidSpec, match=r"significant=True under auto_shutdown=AutoShutdown\.NEVER"):
        check_specs([spec])  # never is the default
    for mode in LEAVING:
        assert check_specs([spec], mode) == (spec,)
    assert len(check_specs([child("a", restart=restart, significant=False)], AutoShutdown.NEVER)) == 1


@pytest.mark.parametrize("mode", AutoShutdown)
@pytest.mark.parametrize("given", [{}, {"restart": Restart.PERMANENT}])
def test_otp_024_significant_and_permanent_is_a_bad_combination(given: dict[str, Any], mode: AutoShutdown) -> None:
    """`significant` with permanent, also by default, in any mode: a bad combination."""
    words = r"is significant and permanent.*significant=True takes restart=Restart\.TRANSIENT or TEMPORARY"
    spec = {"id": "x", "body": idle, "significant": True, **given}
    with pytest.raises(InvalidSpec, match=words):
        check_specs([spec], mode)
    with pytest.raises(InvalidSpec, match=words):
        Supervisor("app", [spec], auto_shutdown=mode)
    with pytest.raises(InvalidSpec, match=words):
        ChildSpec(**spec)
    with pytest.raises(InvalidSpec, match=f"'inner' {words}"):
        Supervisor("inner").spec(significant=True, **given)


@pytest.mark.parametrize("restart", MORTAL)
async def test_otp_025_never_takes_no_significant_child(restart: Restart, autojump_clock: MockClock) -> None:
    """Under never a significant static child fails the start, and one that is added later fails the add."""
    diary = Diary()
    words = r"'b' has significant=True under auto_shutdown=AutoShutdown\.NEVER"
    a, b = child("a", diary.of("a")), child("b", diary.of("b"), restart=restart, significant=True)
    with pytest.raises(InvalidSpec, match=words):
        Supervisor("app", [a, b])
    with pytest.raises(InvalidSpec, match=words):
        await Tree(Supervisor("app", lambda: [a, b])).run()
    with pytest.raises(StartFailed, match=words):
        await Tree(Supervisor("app", [Supervisor("inner", lambda: [a, b]).spec()])).run()
    with pytest.raises(InvalidSpec, match=words):
        Pool("pool", b)
    assert diary.take() == ""

    root = Supervisor("app", [a])
    async with running(Tree(root)):
        before = handles(root)
        with pytest.raises(InvalidSpec, match=words):
            await root.start_child(b)
        refused = Supervisor("b")
        with pytest.raises(InvalidSpec, match=words):
            await root.start_child(refused.spec(restart=restart, significant=True))
        Tree(refused)  # it has no place in the other tree
        assert handles(root) == before
        assert states(root) == {"a": "running"}
        assert await root.start_child(child("b", restart=restart)) is not None
        assert diary.take() == "+a"

    root = Supervisor("app", [child("a")], auto_shutdown=LEAVING[0])
    async with running(Tree(root)):
        assert await root.start_child(b) is not None


@pytest.mark.parametrize("value", [1, 0, "true", None])
async def test_otp_026_significant_is_a_boolean(value: Any, autojump_clock: MockClock) -> None:
    """`significant` that is not a boolean: the error names it, and the value."""
    words = re.escape(f"significant must be a bool, not {value!r}")
    await _refused_everywhere({"id": "x", "body": idle, "restart": Restart.TRANSIENT, "significant": value}, words)


# 27: flags -----------------------------------------------------------------------------------------------------------

BAD_FLAGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"strategy": "one_for_one"}, r"strategy must be of type Strategy, not 'one_for_one'"),
    (lambda: {"strategy": None}, r"strategy must be of type Strategy, not None"),
    (lambda: {"auto_shutdown": "any_significant"}, r"auto_shutdown must be of type AutoShutdown, not 'any_sig"),
    (lambda: {"auto_shutdown": True}, r"auto_shutdown must be of type AutoShutdown, not True"),
    (lambda: {"intensity": 3}, r"intensity must be of type Intensity or Decay, not 3"),
    (lambda: {"intensity": (3, 30)}, r"intensity must be of type Intensity or Decay, not \(3, 30\)"),
    (lambda: {"intensity": Intensity(-1)}, r"intensity\.restarts must be a whole number, 0 or more, not -1"),
    (lambda: {"intensity": Intensity(1.5)}, r"intensity\.restarts must be a whole number, 0 or more, not 1\.5"),  # type: ignore[arg-type]
    (lambda: {"intensity": Intensity(True)}, r"intensity\.restarts must be a whole number, 0 or more, not True"),
    (lambda: {"intensity": Intensity("3")}, r"intensity\.restarts must be a whole number, 0 or more, not '3'"),  # type: ignore[arg-type]
    (lambda: {"intensity": Intensity(3, 0)}, r"within must be a finite number of seconds above 0, not 0"),
    (lambda: {"intensity": Intensity(3, math.inf)}, r"within must be a finite number of seconds above 0, not inf"),
    (lambda: {"intensity": Intensity(3, -1)}, r"within must be a number of seconds, 0 or more, not -1"),
    (lambda: {"intensity": Intensity(3, NAN)}, r"within must be a number of seconds, 0 or more, not nan"),
    (lambda: {"intensity": Intensity(3, "30")}, r"within must be a number of seconds, 0 or more, not '30'"),  # type: ignore[arg-type]
    (lambda: {"intensity": Decay(-1)}, r"threshold must be a number of seconds, 0 or more, not -1"),
    (lambda: {"intensity": Decay(5, 0)}, r"half_life must be a finite number of seconds above 0, not 0"),
    (lambda: {"intensity": Decay(5, math.inf)}, r"half_life must be a finite number of seconds above 0, not inf"),
    (lambda: {"stagger": -1}, r"stagger must be a finite number of seconds, 0 or more, not -1"),
    (lambda: {"stagger": math.inf}, r"stagger must be a finite number of seconds, 0 or more, not inf"),
    (lambda: {"stagger": "0"}, r"stagger must be a finite number of seconds, 0 or more, not '0'"),
    (lambda: {"children": 42}, r"the children of a supervisor must be a collection of specifications, not 42"),
    (lambda: {"children": {"id": "a", "body": idle}}, r"the children of a supervisor must be a collection of spec"),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS)
async def test_otp_027_a_flag_that_cannot_be_is_named_with_its_value(
    flags: Callable[[], dict[str, Any]], words: str, autojump_clock: MockClock
) -> None:
    """A wrong strategy, intensity, period, auto_shutdown, or flags of the wrong shape: each has its own named error."""
    with pytest.raises(InvalidSpec, match=words):
        Plan(**flags())
    with pytest.raises(InvalidSpec, match=words):
        Supervisor("app", **flags())
    with pytest.raises(InvalidSpec, match=words):
        await Tree(Supervisor("app", lambda: Plan(**flags()))).run()


@pytest.mark.parametrize(("flags", "words"), [each for each in BAD_FLAGS if "intensity" in each[1]])
def test_otp_027_a_pool_s_budget_is_held_to_the_same(flags: Callable[[], dict[str, Any]], words: str) -> None:
    """The flags that a pool has are refused as a supervisor's are."""
    with pytest.raises(InvalidSpec, match=words):
        Pool("pool", child("kind"), **flags())


def test_otp_027_unknown_flags_are_refused() -> None:
    """Where OTP ignores a flag that it does not know, Penstock refuses it, as it refuses unknown keys of a spec."""
    for make in (Plan, lambda **flags: Supervisor("app", **flags), lambda **flags: Pool("pool", child("a"), **flags)):
        with pytest.raises(TypeError, match="intensitty"):
            make(intensitty=Intensity(3))


def test_otp_027_what_may_be_is_taken() -> None:
    """The neighbours of the refused values: no restart at all, a short period, a whole number of seconds."""
    for intensity in (Intensity(0), Intensity(0, 0.001), Intensity(1_000_000, 10**9), Decay(0), Decay(0.5, 1)):
        assert Plan(intensity=intensity).intensity is intensity
    for strategy, mode in itertools.product(Strategy, AutoShutdown):
        plan = Plan([child("a")], strategy, auto_shutdown=mode, stagger=0)
        assert (plan.strategy, plan.auto_shutdown) == (strategy, mode)
    assert Plan() == Plan((), Strategy.ONE_FOR_ONE, Intensity(5, 30.0), AutoShutdown.NEVER, 0.01)
    assert Backoff(minimum=1.0, maximum=10.0, jitter=0.0) == PLAIN
