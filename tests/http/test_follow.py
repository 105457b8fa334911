"""What `tail` and `tree --follow` do about a connection: made again, for as long as a restart takes, and told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.http.commands import follow as module
from penstock.http.commands.follow import PATIENCE, PAUSE, follow
from penstock.http.commands.remote import Refused, Sent, Unreachable
from penstock.runtime.cli import CommandError

CUT = Unreachable("cut")
REFUSED = Unreachable("connection refused", 2)


class FakeRemote:
    """Each connection is the next of `script`: an error that is no connection, or what comes over it.

    What comes is an id, a number of seconds of silence, or the error that ends it.
    """

    def __init__(self, sleep: Callable[[float], None], script: list[Any]) -> None:
        self._sleep = sleep
        self._script = script
        self.asked: list[str] = []

    @contextmanager
    def events(self, path: str, last_id: str = "") -> Iterator[Iterator[Sent]]:
        self.asked.append(last_id)
        if not self._script:
            raise REFUSED
        connection = self._script.pop(0)
        if isinstance(connection, Exception):
            raise connection
        yield self._events(connection)

    def _events(self, connection: list[Any]) -> Iterator[Sent]:
        for each in connection:
            if isinstance(each, Exception):
                raise each
            if isinstance(each, str):
                yield Sent("x", each, "")
            else:
                self._sleep(each)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only by sleeping."""
    clock = SimpleNamespace(now=1_000.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return sleep


def _followed(remote: Any, position: str = "") -> tuple[list[str], Exception]:
    """The ids that came until it gave up, and with what."""
    ids = []
    try:
        for sent in follow(remote, "/x", position):
            ids.append(sent.id)
    except CommandError as error:
        return ids, error
    raise AssertionError("it does not end by itself")


def test_each_connection_goes_on_behind_the_last_event(sleep: Any) -> None:
    remote = FakeRemote(sleep, [["1", "2", CUT], [], ["", "3"]])
    ids, _ = _followed(remote, "0")
    assert ids == ["1", "2", "", "3"]
    assert remote.asked[:4] == ["0", "2", "2", "3"]


def test_where_nothing_ever_answered_there_is_nothing_to_wait_for(sleep: Any) -> None:
    remote = FakeRemote(sleep, [])
    assert _followed(remote) == ([], REFUSED)
    assert len(remote.asked) == 1


def test_the_patience_begins_with_the_loss_however_long_it_was_silent_before(sleep: Any) -> None:
    remote = FakeRemote(sleep, [[3_600.0, CUT], REFUSED, ["1", 3_600.0, CUT], REFUSED, ["2"]])
    ids, error = _followed(remote)
    assert ids == ["1", "2"]
    assert error is REFUSED
    assert len(remote.asked) == pytest.approx(5 + PATIENCE / PAUSE, abs=2)


def test_a_server_that_is_not_ready_is_waited_for_and_one_that_says_no_is_not(sleep: Any) -> None:
    busy, gone = Refused("busy", 503), Refused("no such stream", 404)
    assert _followed(FakeRemote(sleep, [["1", CUT], busy, busy, ["2", CUT], gone])) == (["1", "2"], gone)
    assert _followed(FakeRemote(sleep, [busy])) == ([], busy)


def test_what_becomes_of_the_connection_is_said_once(sleep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _followed(FakeRemote(sleep, [["1", CUT], REFUSED, REFUSED, REFUSED, ["2"]]))
    assert capsys.readouterr().err.splitlines() == [
        "penstock: cut; connecting again",
        "penstock: connection refused; connecting again",
        "penstock: connected again after 4 s",
        "penstock: the stream of events has ended; connecting again",
        "penstock: connection refused; connecting again",
    ]


def test_a_password_in_the_address_is_not_shown_and_no_code_reaches_the_terminal(sleep: Any, capsys: Any) -> None:
    _followed(FakeRemote(sleep, [["1", Unreachable("the connection to http://me:hunter2@host broke off: \x1b[2J")]]))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == r"penstock: the connection to http://me:***@host broke off: \x1b[2J; connecting again"
