"""What is set of streams and groups, over what is declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.actors.configuring import configured
from penstock.actors.event import event_type_of
from penstock.actors.handling import Context
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.stream_settings import GroupSettings, StreamSettings
from penstock.actors.system import DeclarationError, Group, System

FUNCTIONS = Path(__file__).parent / "handlers_of_tests.py"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUNCTIONS.parent))


def shop() -> System:
    from handlers_of_tests import Placed

    system = System("shop")
    orders = system.stream("orders", events=[Placed], partitions=2)
    orders.group("payment", workers=2, retry=RetryPolicy(deliveries=3))

    @orders.on(Placed, group="payment", timeout=7.0)
    async def pay(placed: Placed, context: Context) -> None: ...

    return system


def set_to(group: GroupSettings | None = None, *, name: str = "payment", **stream: Any) -> ActorSettings:
    groups = {} if group is None else {name: group}
    return ActorSettings(streams={"orders": StreamSettings(groups=groups, **stream)})


def handled_by(place: str, *, name: str = "payment", event_type: str = "PLACED") -> ActorSettings:
    return set_to(GroupSettings(handlers={event_type: place}), name=name)


def test_without_streams_the_system_is_the_same() -> None:
    system = shop()
    assert configured(system, ActorSettings()) is system


def test_what_is_set_overrides_what_is_declared_which_is_not_changed() -> None:
    system = shop()
    options = GroupSettings(consumers=3, batch=5, block=2.0, start="$", ordered=True, enabled=False)
    made = configured(system, set_to(options, max_len=100, partitions=4, events=["OTHER"])).streams["orders"]
    group = made.groups["payment"]
    assert (made.lossy_cap, made.partitions, list(made.types)) == (100, 4, ["PLACED", "OTHER"])
    assert (group.consumers, group.batch, group.block, group.start) == (3, 5, 2.0, "$")
    assert (group.ordered, group.enabled) == (True, False)
    assert (group.workers, group.retry, list(group.handlers)) == (2, RetryPolicy(deliveries=3), ["PLACED"])
    before = system.streams["orders"]
    assert (before.lossy_cap, before.partitions, list(before.types)) == (None, 2, ["PLACED"])
    assert (before.groups["payment"].consumers, before.groups["payment"].enabled) == (1, True)


def test_what_is_not_set_is_as_declared() -> None:
    system = shop()
    system.streams["orders"].groups["payment"].enabled = False
    made = configured(system, set_to(GroupSettings())).streams["orders"]
    assert (made.partitions, made.lossy_cap) == (2, None)
    assert (made.groups["payment"].workers, made.groups["payment"].enabled) == (2, False)


def test_gates_routes_and_migrations_are_those_of_the_declared_system() -> None:
    async def probe() -> None: ...

    system = System("shop", migrations=FUNCTIONS.parent)
    system.gate("mail", probe)
    system.parts.append("routes")
    made = configured(system, set_to())
    assert (made.name, made.migrations, made.gates, made.parts) == (
        "shop",
        FUNCTIONS.parent,
        {"mail": probe},
        ["routes"],
    )


def test_retries_that_are_set_go_over_the_groups_policy_or_the_settings_of_all() -> None:
    made = configured(shop(), set_to(GroupSettings(retry_maximum=9.0))).streams["orders"].groups["payment"]
    assert made.retry == RetryPolicy(deliveries=3, maximum=9.0)
    settings = ActorSettings(
        delivery=DeliverySettings(max_deliveries=8, retry_minimum=2.0),
        streams={"new": StreamSettings(groups={"g": GroupSettings(max_deliveries=4, handlers={"A": TAKES_DATA})})},
    )
    assert configured(shop(), settings).streams["new"].groups["g"].retry == RetryPolicy(deliveries=4, minimum=2.0)
    with pytest.raises(DeclarationError, match=r"retry_maximum \(60\) must not be below retry_minimum \(90\)"):
        configured(shop(), set_to(GroupSettings(retry_minimum=90.0)))


TAKES_DATA = f"{FUNCTIONS}:take_data"


@pytest.mark.parametrize("place", ["handlers_of_tests:take_object", f"{FUNCTIONS}:take_object"])
def test_a_function_is_given_objects_of_the_event_class_that_it_names(place: str) -> None:
    from handlers_of_tests import Placed, take_object

    made = configured(System("new"), handled_by(place)).streams["orders"]
    assert made.types == {"PLACED": event_type_of(Placed)}
    handler = made.groups["payment"].handlers["PLACED"]
    assert (handler.call, handler.event_type.cls) == (take_object, Placed)


def test_a_function_that_names_none_is_given_what_the_stream_declares_or_else_the_data() -> None:
    from handlers_of_tests import Placed

    place = "handlers_of_tests:take_whatever"
    declared = configured(shop(), handled_by(place)).streams["orders"].groups["payment"].handlers["PLACED"]
    assert declared.event_type.cls is Placed
    handler = configured(System("new"), handled_by(place)).streams["orders"].groups["payment"].handlers["PLACED"]
    assert handler.event_type.structure({"number": [1]}) == {"number": [1]}


def test_a_function_that_wants_the_data_is_given_them_also_where_a_class_is_declared() -> None:
    from handlers_of_tests import Placed

    made = configured(shop(), handled_by(TAKES_DATA)).streams["orders"]
    assert made.types["PLACED"].cls is Placed
    assert made.groups["payment"].handlers["PLACED"].event_type.cls is dict


def test_a_function_takes_the_place_of_the_declared_one_and_has_its_limits() -> None:
    handler = configured(shop(), handled_by(TAKES_DATA)).streams["orders"].groups["payment"].handlers["PLACED"]
    assert (handler.name, handler.timeout) == ("handlers_of_tests.take_data", 7.0)


def test_a_group_that_only_the_settings_have_and_nothing_handles_is_another_programs() -> None:
    made = configured(shop(), set_to(GroupSettings(start="$"), name="ranking")).streams["orders"]
    assert list(made.groups) == ["payment"]
    assert [(group.name, group.start) for group in made.made_only] == [("ranking", "$")]
    off = configured(shop(), set_to(GroupSettings(enabled=False), name="ranking")).streams["orders"]
    assert off.made_only == []


def test_a_group_that_is_not_enabled_is_still_declared() -> None:
    made = configured(shop(), set_to(GroupSettings(enabled=False))).streams["orders"]
    assert list(made.groups) == ["payment"]
    assert [group.name for group in made.made_only] == ["payment"]


def test_applied_twice_it_is_the_same() -> None:
    settings = ActorSettings(
        streams={
            "orders": StreamSettings(
                partitions=3,
                groups={
                    "payment": GroupSettings(max_deliveries=2, handlers={"PLACED": TAKES_DATA}),
                    "ranking": GroupSettings(),
                },
            )
        }
    )

    def told(system: System) -> list[Any]:
        def group(each: Group) -> Any:
            return each.name, each.consumers, each.retry, each.handlers

        return [
            (each.key, each.partitions, each.types, list(map(group, each.groups.values())), list(each.external))
            for each in system.streams.values()
        ]

    once = configured(shop(), settings)
    assert told(configured(once, settings)) == told(once)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("nowhere:pay", "cannot be imported: there is no module 'nowhere'"),
        ("nowhere.py:pay", "cannot be imported: there is no file nowhere.py"),
        ("handlers_of_tests", "cannot be imported: 'handlers_of_tests' is not of the form"),
        ("handlers_of_tests:pay", "is not in its module"),
        ("handlers_of_tests:take_nothing", "is no async function, but a function"),
        ("handlers_of_tests:Placed", "is no async function, but a type"),
        ("handlers_of_tests:Taker", "is no async function, but a type"),
        ("./handlers_of_tests:take_object", "cannot be imported: './handlers_of_tests' is no module's name"),
        ("handlers_of_tests:take_one", "must take two arguments, (event, context)"),
        ("handlers_of_tests:take_unknown", "takes 'Decimal', which is not known when it runs"),
        ("handlers_of_tests:take_settings", "takes what is no event: Undeclared is no event class"),
    ],
)
def test_a_function_that_cannot_be_a_handler_is_refused_with_its_place(place: str, problem: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        configured(shop(), handled_by(place))
    assert str(refused.value).startswith(f"group 'payment' of stream 'orders': the handler of PLACED, {place!r}, ")
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("async def pay(order, context:", "SyntaxError: '(' was never closed"),
        ("raise SystemExit(0)", "ends the program when it is imported"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_handler(tmp_path: Path, text: str, problem: str) -> None:
    place = tmp_path / f"broken_{abs(hash(text))}.py"
    place.write_text(text)
    with pytest.raises(DeclarationError) as refused:
        configured(shop(), handled_by(f"{place}:pay"))
    assert str(refused.value).startswith("group 'payment' of stream 'orders': the handler of PLACED, ")
    assert problem in str(refused.value)


def test_a_partial_function_is_given_what_its_first_free_parameter_wants() -> None:
    handler = configured(shop(), handled_by("handlers_of_tests:take_for_somebody")).streams["orders"]
    assert handler.groups["payment"].handlers["PLACED"].event_type.cls is dict


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31m", "x" * 300])
def test_names_that_no_database_takes_are_refused(name: str) -> None:
    for settings in (
        ActorSettings(streams={name: StreamSettings()}),
        set_to(GroupSettings(), name=name),
        handled_by("handlers_of_tests:take_data", name=name),
        handled_by("handlers_of_tests:take_data", event_type=name),
    ):
        with pytest.raises(DeclarationError, match="at most 256 characters that can be printed"):
            configured(System("shop"), settings)


@pytest.mark.parametrize(
    "chosen",
    [
        StreamSettings(),
        StreamSettings(max_len=100),
        StreamSettings(partitions=4),
        StreamSettings(groups={"payment": GroupSettings(enabled=False)}),
    ],
)
def test_a_stream_beside_those_of_the_code_that_nothing_would_use_is_taken_for_a_mistyped_name(
    chosen: StreamSettings,
) -> None:
    with pytest.raises(DeclarationError) as refused:
        configured(shop(), ActorSettings(streams={"ordrs": chosen}))
    assert str(refused.value).startswith('[streams."ordrs"]: no stream of this name is declared in code; did you mean')
    assert "'orders'" in str(refused.value)
    assert "events = [...]" in str(refused.value)
    with pytest.raises(DeclarationError, match=r"declared are 'orders'\. If a further stream is meant"):
        configured(shop(), ActorSettings(streams={"invoices": chosen}))


@pytest.mark.parametrize(
    "chosen",
    [
        StreamSettings(events=["NOTED"]),
        StreamSettings(groups={"ranking": GroupSettings()}),
        StreamSettings(groups={"ranking": GroupSettings(handlers={"A": TAKES_DATA}, enabled=False)}),
    ],
)
def test_a_further_stream_that_says_what_it_is_for_is_declared(chosen: StreamSettings) -> None:
    settings = ActorSettings(streams={"ordrs": chosen})
    once = configured(shop(), settings)
    assert list(once.streams) == ["orders", "ordrs"]
    assert list(configured(once, settings).streams) == ["orders", "ordrs"]


def test_a_system_of_settings_alone_has_what_streams_they_name() -> None:
    settings = ActorSettings(streams={"orders": StreamSettings(), "invoices": StreamSettings(max_len=100)})
    once = configured(System("new"), settings)
    assert list(configured(once, settings).streams) == ["orders", "invoices"]


def test_a_stream_that_is_the_partition_of_another_is_refused() -> None:
    made = configured(shop(), ActorSettings(streams={"{orders:1}": StreamSettings(events=["NOTED"])}))
    with pytest.raises(DeclarationError, match=r"'orders' and '\{orders:1\}' would both be '\{orders:1\}'"):
        made.check()


@pytest.mark.parametrize("start", ["٣", "18446744073709551616", "0-18446744073709551616", "1-1-1", "-", ""])
def test_what_is_no_entry_id_is_no_start(start: str) -> None:
    with pytest.raises(ValueError, match="the id of an entry"):
        GroupSettings(start=start)


def test_numbers_that_nobody_can_mean_are_refused() -> None:
    for wrong in ({"partitions": 16_385}, {"max_len": 2**63}):
        with pytest.raises(ValueError, match="must be from 1 to"):
            StreamSettings(**wrong)
    with pytest.raises(ValueError, match="must be from 1 to"):
        GroupSettings(batch=2**63)


def test_a_function_for_another_event_type_is_refused() -> None:
    with pytest.raises(DeclarationError, match="takes Placed, which is PLACED"):
        configured(shop(), handled_by("handlers_of_tests:take_object", event_type="CANCELLED"))


def test_options_of_a_group_that_nothing_handles_are_refused_for_its_name_may_be_mistyped() -> None:
    with pytest.raises(DeclarationError, match=r"for which consumers and batch cannot be set here; did you mean 'pay"):
        configured(shop(), set_to(GroupSettings(consumers=2, batch=3), name="paymnt"))


def test_a_file_whose_name_another_module_has_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "json.py"
    other.write_text("async def pay(order, context): ...\n")
    with pytest.raises(DeclarationError, match=r"cannot be imported as 'json', for that is .*rename the file"):
        configured(shop(), handled_by(f"{other}:pay"))
