"""A stream whose entries look otherwise, by a codec of the event's own, beside the standard ones."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import pytest
from attrs import frozen

from penstock.actors.event import Envelope, Fields, Origin, UndecodableEntry, event, event_type_of
from penstock.actors.system import System

ORIGIN = Origin("user-events", "1746327600123-4")


class FlatCodec:
    """An entry with a field ``eventType`` that is none of ours."""

    def encode(self, envelope: Envelope) -> Fields:
        return {"userId": envelope.data["userId"], "eventType": envelope.data["eventType"], "data": "none"}

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        data = {"userId": fields["userId"], "eventType": fields["eventType"]}
        return Envelope(event_type="USER_EVENT", data=data, event_id=origin.event_id, timestamp=origin.added_at)

    def recognises(self, fields: Mapping[str, str]) -> bool:
        return "userId" in fields


@event("USER_EVENT", codec=FlatCodec())
@frozen
class UserEvent:
    user_id: str
    event_type: str


@event("SIGNED_OUT")
@frozen
class SignedOut:
    user_id: str


STREAM = System("flat").stream("user-events", events=[SignedOut, UserEvent])


def test_an_own_codec_is_asked_before_the_standard_one() -> None:
    decoded = STREAM.decode({"userId": "ann", "eventType": "login", "data": "successful"}, ORIGIN)
    assert (decoded.event_type, decoded.data) == ("USER_EVENT", {"userId": "ann", "eventType": "login"})
    assert decoded.event_id == ORIGIN.event_id


def test_standard_entries_stand_beside_them() -> None:
    envelope = event_type_of(SignedOut).envelope(SignedOut("ann"))
    assert STREAM.decode(STREAM.encode(envelope), ORIGIN) == envelope


def test_a_broken_standard_entry_is_still_named() -> None:
    with pytest.raises(UndecodableEntry, match="the field data is missing"):
        STREAM.decode({"eventType": "SIGNED_OUT", "eventId": str(UUID(int=1))}, ORIGIN)
