"""Events are made up for any class whose attributes have types that can be drawn, and else refused with a way out."""

from __future__ import annotations

import enum
import random
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from attrs import field, frozen, validators

from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.simulation.generated import CannotMake, make_event, make_publications
from penstock.actors.system import System


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@frozen
class Line:
    article: str
    amount: int


@event("BOUGHT", key="customer")
@frozen
class Bought:
    customer: str
    lines: list[Line]
    paid: float | None
    when: datetime
    day: date
    receipt: UUID
    colour: Colour
    size: Literal["s", "m", "l"]
    tags: dict[str, int]
    note: Annotated[str, "free"] = ""
    places: tuple[int, ...] = ()


@event("PICKY")
@frozen
class Picky:
    number: int = field(validator=validators.gt(5_000))


@event("ODD")
@frozen
class Odd:
    number: complex


def _system(*classes: type) -> System:
    system = System("shop")
    stream = system.stream("orders", events=list(classes))
    for cls in classes:

        @stream.on(cls, group="all")
        async def handle(value: Any, context: Context) -> None: ...

    return system


def test_what_is_made_up_comes_through_the_stream_as_it_was() -> None:
    declared = event_type_of(Bought)
    chance = random.Random(0)
    for _ in range(100):
        made = make_event(declared, chance)
        assert declared.structure(declared.unstructure(made)) == made


def test_keys_meet_again_and_the_same_seed_makes_the_same() -> None:
    made = make_publications(random.Random(3), _system(Bought))
    again = make_publications(random.Random(3), _system(Bought))
    assert [each.envelope.data for each in made] == [each.envelope.data for each in again]
    keys = [each.envelope.key for each in made]
    assert None not in keys
    assert len(set(keys)) < len(keys)


@pytest.mark.parametrize("cls", [Picky, Odd])
def test_what_cannot_be_made_up_is_asked_for(cls: type) -> None:
    with pytest.raises(CannotMake, match=r"simulation_events\(chance\)"):
        make_publications(random.Random(0), _system(cls))


def test_a_system_without_handlers_is_nothing_to_simulate() -> None:
    with pytest.raises(CannotMake, match="has a handler"):
        make_publications(random.Random(0), System("empty"))


def test_jobs_are_made_up_for_queues() -> None:
    system = System("images")

    @system.queue("orders").on(Bought)
    async def handle(value: Any, context: Context) -> None: ...

    made = make_publications(random.Random(3), system)
    assert {(each.stream, each.envelope.event_type) for each in made} == {("orders", "BOUGHT")}
