"""What the answer to a request that publishes means for each of its events. Pure.

The rule: only an answer about an event decides on it. Whatever else comes (no answer, half an answer, another server's
answer) leaves the outcome unknown, and the event is sent again with its id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from uuid import UUID

from attrs import frozen

__all__ = ["Accepted", "Again", "Refused", "Smaller", "Verdict", "read_answer"]

_OURS = "urn:penstock:problem:"
_REFUSED_BY_REDIS = f"{_OURS}refused-by-redis"


@frozen
class Accepted:
    """The event is durable.

    Attributes:
        event_id: of the event.
        entry_id: its id in the stream; None while it is only in the outbox.
        durable: where it is safe: ``redis`` or ``outbox``.
    """

    event_id: UUID
    entry_id: str | None
    durable: Literal["redis", "outbox"]


@frozen
class Again:
    """Not accepted, as far as is known: to be sent again.

    Attributes:
        why: in words.
        after: seconds that the server asks for.
        unknown: whether it may have been accepted all the same.
        bug: whether the server itself failed over it (its own 500, no proxy's), which may never end.
    """

    why: str
    after: float = 0.0
    unknown: bool = False
    bug: bool = False


@frozen
class Refused:
    """Never to be accepted as it is; `problem` says why (RFC 9457)."""

    problem: dict[str, Any]

    @property
    def why(self) -> str:
        """The same in words."""
        return _words(self.problem)


@frozen
class Smaller:
    """The request as a whole was too much for the server; `alone` holds for an event that was its only one."""

    why: str
    alone: Refused | Again


Verdict = Accepted | Again | Refused | Smaller


def read_answer(status: int, headers: Mapping[str, str], body: bytes, ids: Sequence[UUID]) -> list[Verdict]:
    """One verdict for each of the request's events, in order.

    Args:
        status: of the answer.
        headers: of the answer; names in any case are found if the mapping does so.
        body: the whole of it.
        ids: the events that were sent, one a line.
    """
    after = _retry_after(headers.get("retry-after"))
    if status == 202:
        return _results(body, ids) or [Again("the answer does not fit the request", unknown=True)] * len(ids)
    problem = _problem(status, body)
    if status == 503 and isinstance(problem.get("results"), list):
        return _of_results(problem["results"], ids, after) or [_again(problem, after)] * len(ids)
    if status == 404 and not _is_ours(problem):
        return [_again(problem, after)] * len(ids)  # a proxy's, which answers so while no server is behind it
    return [_whole(status, problem, after)] * len(ids)


def _whole(status: int, problem: dict[str, Any], after: float) -> Verdict:
    """What an answer that does not speak of single events means for all of them."""
    if status == 413:
        return Smaller(_words(problem), Refused(problem))
    if status == 500 and _is_ours(problem):
        # One event may have brought it about. Alone it is tried again, a few times: see `Sender`.
        return Smaller(_words(problem), Again(_words(problem), after, unknown=True, bug=True))
    if status in (408, 425, 429) or (status >= 500 and problem["type"] != _REFUSED_BY_REDIS):
        return _again(problem, after)
    if status >= 300:
        return Refused(problem)
    return Again(f"this is no Penstock: it answers with {status}", unknown=True)


# Results -------------------------------------------------------------------------------------------------------------


def _results(body: bytes, ids: Sequence[UUID]) -> list[Verdict] | None:
    return _of_results([_value(line) for line in body.splitlines() if line.strip()], ids, 0.0)


def _of_results(results: Sequence[Any], ids: Sequence[UUID], after: float) -> list[Verdict] | None:
    """None if they are not the results of these events."""
    if len(results) != len(ids):
        return None
    verdicts = [_of_result(result, event_id, after) for result, event_id in zip(results, ids, strict=True)]
    return [each for each in verdicts if each is not None] if None not in verdicts else None


def _of_result(result: Any, event_id: UUID, after: float) -> Verdict | None:
    if not isinstance(result, dict):
        return None
    error = result.get("error")
    if error is None:
        durable = result.get("durable")
        if result.get("eventId") != str(event_id) or durable not in ("redis", "outbox"):
            return None
        return Accepted(event_id, result.get("entryId"), durable)
    if not isinstance(error, dict) or not isinstance(error.get("status"), int):
        return None
    problem = {"type": "about:blank", **error}
    if problem.get("eventId", str(event_id)) != str(event_id):
        return None
    verdict = _whole(problem["status"], problem, after)
    return verdict.alone if isinstance(verdict, Smaller) else verdict


# Problems ------------------------------------------------------------------------------------------------------------


def _problem(status: int, body: bytes) -> dict[str, Any]:
    """The problem details of the body, or, where it has none (a proxy's page), what can be said without."""
    value = _value(body)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        value = {"type": "about:blank", "detail": f"the server, or a proxy before it, answers with {status}"}
    return {**value, "status": status}


def _is_ours(problem: Mapping[str, Any]) -> bool:
    """Whether Penstock says so, and no proxy before it."""
    return str(problem["type"]).startswith(_OURS)


def _again(problem: Mapping[str, Any], after: float) -> Again:
    # Only Penstock itself knows whether it has passed the event on; a proxy's 502 or 504 may come after it had.
    known = problem.get("outcomeUnknown") is False or problem["status"] == 429
    return Again(_words(problem), max(after, _seconds(problem.get("retryAfter"))), unknown=not known)


def _words(problem: Mapping[str, Any]) -> str:
    return str(problem.get("detail") or problem.get("title") or f"status {problem['status']}")


def _value(text: bytes) -> Any:
    """The JSON value; None where there is none, or one that is nested too deep to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _seconds(value: object) -> float:
    """What an answer calls a number of seconds; 0 where it is none."""
    try:
        seconds = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:  # a whole number may have hundreds of digits
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _retry_after(header: str | None) -> float:
    """Seconds, of either form that RFC 9110 knows; 0 where there is none or it cannot be read."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
