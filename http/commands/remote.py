"""A running system as the commands see it: over HTTP, with the standard library, in plain blocking code."""

from __future__ import annotations

import getpass
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
from attrs import field, frozen

from ...runtime.cli import CommandError, load_settings
from ..configuration import Settings

__all__ = ["Answer", "NotConnected", "Refused", "Remote", "Sent", "Unreachable", "me", "remote_of", "url_option"]

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT = 30.0
"""Seconds without a byte, after which an answer is given up. An event stream says something every 15 s."""

PATIENCE = 60.0
"""Seconds for which a system may not answer whose orders are waited for: they outlive its restarts."""

_AWAY, _LOOK = 503, 0.5

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what one listens on, not what one connects to


@frozen
class Answer:
    """An answer.

    Attributes:
        status: the HTTP status.
        body: the body.
        headers: those of the answer, by their names in small letters.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=dict)

    def json(self) -> Any:
        """The body's JSON, or None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def complaint(self) -> str:
        """What the problem in the body says, or the bare status."""
        problem = self.json()
        detail = problem.get("detail") if isinstance(problem, dict) else None
        return str(detail or f"the server answered with status {self.status}")


@frozen
class Sent:
    """A server-sent event.

    Attributes:
        name: its type.
        id: what to come back with, to go on behind it.
        data: its text.
    """

    name: str
    id: str
    data: str


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Remote:
    """A running system at `url`: ``http://``, ``https://`` or ``unix:PATH``.

    Raises:
        CommandError: `url` is none, or later, with exit code 2: nothing listens there.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        try:
            known = self._parts.scheme == "unix" or (self._parts.scheme in ("http", "https") and self._parts.hostname)
            self._parts.port  # noqa: B018 - reading it is the check
        except ValueError:
            known = False
        if not known:
            raise CommandError(f"--url must be http://HOST:PORT, https://HOST:PORT or unix:PATH, not {url!r}", 2)

    def get(self, path: str) -> Any:
        """The JSON at `path`; raises `CommandError` for every other answer."""
        answer = self.request("GET", path)
        if answer.status != 200:
            raise CommandError(answer.complaint)
        return answer.json()

    def insist(self, path: str) -> Any:
        """As `get`, but a system that restarts meanwhile, or whose servers are away, is asked again for `PATIENCE`."""
        patient_until = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.request("GET", path)
            except Unreachable:
                if time.monotonic() > patient_until:
                    raise
            else:
                if answer.status == 200:
                    return answer.json()
                if answer.status != _AWAY or time.monotonic() > patient_until:
                    raise CommandError(answer.complaint)
            time.sleep(_LOOK)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its answer, whatever the status.

        Raises:
            NotConnected: nothing listens there.
            Unreachable: the connection broke; the request may have been served all the same.
        """
        sent = {**({"Content-Type": content_type} if content_type else {}), **(headers or {})}
        with self._answer(method, path, body, sent) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, response.read(), found)

    @contextmanager
    def events(self, path: str, last_id: str = "") -> Iterator[Iterator[Sent]]:
        """A connection over which the server-sent events at `path` come, until the stream ends.

        Args:
            path: of the stream.
            last_id: the id of the event to go on behind.

        Raises:
            CommandError: as `request`, or the answer is no event stream.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        with self._answer("GET", path, None, headers) as response:
            if response.status != 200:
                answer = Answer(response.status, response.read())
                raise Refused(answer.complaint, answer.status)
            yield _sent(response)

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            try:
                connection.connect()
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                hint = "is 'penstock run' running? --url names another address"
                raise NotConnected(f"nothing answers at {self.url}: {reason}; {hint}", 2) from error
            try:
                connection.request(method, self._prefix + path, body, headers)
                yield connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
                raise Unreachable(f"the connection to {self.url} broke off: {said}") from error
        finally:
            connection.close()

    @property
    def _prefix(self) -> str:
        return "" if self._parts.scheme == "unix" else self._parts.path

    def _connection(self) -> http.client.HTTPConnection:
        if self._parts.scheme == "unix":
            return _UnixConnection(self.url.removeprefix("unix:"), TIMEOUT)
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT)


def _sent(lines: Iterable[bytes]) -> Iterator[Sent]:
    name, event_id, data = "message", "", []
    for line in lines:
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)
        elif not field and data:
            yield Sent(name, event_id, "\n".join(data))
            name, data = "message", []


class Unreachable(CommandError):
    """Nothing answers, or the connection broke: another attempt may help."""


class NotConnected(Unreachable):
    """There was no connection, so that nothing can have been sent."""


class Refused(CommandError):
    """The server refused.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def url_option(command: F) -> F:
    """Decorator: ``--url``, passed on as ``url``; None where it is not given."""
    return click.option(
        "--url",
        metavar="URL",
        help="The running system: http://HOST:PORT or unix:PATH. Default: where the settings have it listen.",
    )(command)


def remote_of(url: str | None) -> Remote:
    """The system at `url`, or the one of this invocation's settings."""
    return Remote(url if url is not None else _url_of(load_settings(Settings).http.bind[0]))


def me() -> str:
    """Who gives this command, for the record: ``USER@HOST``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as containers have
        user = "somebody"
    name = f"{user}@{socket.gethostname()}"
    return "".join(letter for letter in name if letter.isascii() and letter.isprintable())[:200]


def _url_of(bind: str) -> str:
    if bind.startswith("unix:"):
        return bind
    if bind.startswith("fd://"):
        raise CommandError(f"http.bind is {bind}, which says nothing of the address; give it with --url", 2)
    host, _, port = bind.rpartition(":")
    return f"http://{_EVERYWHERE.get(host, host)}:{port}"
