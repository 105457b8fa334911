"""The key by which events are kept in order is the declared attribute's, also for those who publish over HTTP."""

from __future__ import annotations

import pytest
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.outgoing import Outgoing, outgoing
from penstock.actors.system import System
from penstock.http.incoming import read_event


@event("MOVED", key="account_id")
@frozen
class Moved:
    account_id: int
    amount: int


STREAM = System("bank").stream("moves", events=[Moved])


@pytest.mark.parametrize(("given", "key"), [({}, "7"), ({"key": "seven"}, "seven"), ({"key": None}, "7")])
def test_the_declared_attribute_is_the_key_unless_another_is_given(given: dict[str, object], key: str) -> None:
    item = {"eventType": "MOVED", "data": {"accountId": 7, "amount": 1}, **given}
    made = outgoing(STREAM, read_event(item, STREAM))
    assert isinstance(made, Outgoing)
    assert (made.key, made.fields["key"]) == (key, key)


def test_an_event_of_a_type_that_is_not_declared_has_the_key_it_brings() -> None:
    anything = System("bank").stream("anything")
    assert read_event({"eventType": "X", "data": {}}, anything).key is None
    assert read_event({"eventType": "X", "data": {}, "key": "k"}, anything).key == "k"
