"""What may be done with single entries over HTTP.

``…/{stream}/groups/{group}/claim`` has them taken over, ``…/{stream}/entries/delete`` deletes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.claim_order import ClaimOutcome, ClaimResult, KeeperHeld
from ..actors.deletions import AmbiguousEntry, Deletions, EntriesWanted, Judged
from ..actors.pending import AT_ONCE
from ..actors.system import Group
from ..runtime.masking import mask_text
from .asking import Given, asker, asking, asking_redis, given_body, known_stream, unknown_group, wrong
from .problems import Problem, sentence
from .replies import json_reply
from .running import RunningSystem
from .views import iso, shut_gate

__all__ = ["entry_orders"]

ANSWER_WITHIN = 10.0
"""Seconds for an answer."""

LONGEST = 7 * 86_400.0
"""Seconds that an entry may be asked to have been left alone."""

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_LARGEST = 2**64 - 1


def entry_orders(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("entry_orders", __name__, url_prefix="/api/v1/streams")

    @routes.post("/<path:stream>/groups/<path:group>/claim")
    async def claim_entries(stream: str, group: str) -> TrioResponse:
        declared, keys = known_stream(deployment.system, stream)
        if group not in declared.groups:
            unknown_group(declared, group)
        given = await given_body()
        ids, idle = _ids(given), given.real("minIdle", 0.001, LONGEST)
        force = given.truth("force")
        given.end()
        if force and idle is not None:
            wrong("minIdle and force: one of them.")
        _check_group(deployment, declared.groups[group])
        with (
            asking_redis(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep,
            asking(deployment, upkeep, ANSWER_WITHIN),
        ):
            least = 0.0 if force else idle or upkeep.reclaim_idle
            try:
                found = await deployment.claim(keys, group, ids, idle=least, by=asker())
            except KeeperHeld as error:
                raise _held(f"The group's keeper does not answer: {mask_text(str(error))}.") from None
        return json_reply({"stream": stream, "group": group, "minIdle": least, **_claimed_json(found)})

    @routes.post("/<path:stream>/entries/delete")
    async def delete_entries(stream: str) -> TrioResponse:
        declared, keys = known_stream(deployment.system, stream)
        given = await given_body()
        ids, unread, dry_run = _ids(given), given.truth("unread"), given.truth("dryRun")
        given.end()
        with _deletions(deployment) as desk:
            if dry_run:
                found = await desk.judge(declared, keys, ids)
            else:
                found = await desk.delete(declared, keys, ids, by=asker(), unread=unread)
        wanted = dry_run and not unread and any(each.wanted for each in found)
        refusal = _refusal(EntriesWanted(found)) if wanted else None
        return json_reply({"stream": stream, "dryRun": dry_run, "refusal": refusal, **_deleted_json(found)})

    return routes


@contextmanager
def _deletions(deployment: RunningSystem) -> Iterator[Deletions]:
    try:
        with (
            asking_redis(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep,
            asking(deployment, upkeep.deletions, ANSWER_WITHIN) as desk,
        ):
            yield desk
    except EntriesWanted as error:
        members = _deleted_json(error.entries)
        raise Problem(409, "entry-wanted", "Somebody wants the entry", _refusal(error), members=members) from None
    except AmbiguousEntry as error:
        raise Problem(409, "entry-ambiguous", "The id stands in several partitions", sentence(error)) from None


def _refusal(error: EntriesWanted) -> str:
    return f"{sentence(error)} Deleted all the same (unread), it is lost to them."


def _check_group(deployment: RunningSystem, group: Group) -> None:
    """Refuse for a group whose entries nobody may take over, or cannot now."""
    if not group.enabled:
        detail = f"The group {group.name} is not read by this process (enabled = false): ask one that reads it."
        raise Problem(409, "claim-refused", "Not possible in this group", detail)
    if group.ordered:
        detail = (
            f"The group {group.name} is ordered: the owner of each partition handles its entries, in their order, and"
            " takes over by itself what an earlier owner held. There is nothing to claim."
        )
        raise Problem(409, "claim-refused", "Not possible in this group", detail)
    for name in group.requires:
        gate = shut_gate(deployment.gates, name)
        if gate is not None:
            raise _held(f"The group is held since {iso(gate.since)}, for {name} is away: {mask_text(gate.cause)}.")


def _held(detail: str) -> Problem:
    return Problem(503, "group-held", "The group is held", detail, headers={"Retry-After": "1"})


def _ids(given: Given) -> list[str]:
    """The ids of entries, each once."""
    ids = given.items("ids")
    if not ids:
        wrong("ids: is required, a list of entry ids.")
    if len(ids) > AT_ONCE:
        wrong(f"ids: at most {AT_ONCE} at a time.")
    for each in ids:
        if not (isinstance(each, str) and _ID.fullmatch(each) and all(int(n) <= _LARGEST for n in each.split("-"))):
            wrong("ids: must be whole entry ids, as 1700000000000-0.")
    return list(dict.fromkeys("-".join(str(int(number)) for number in each.split("-")) for each in ids))


# What is answered ----------------------------------------------------------------------------------------------------


def _deleted_json(found: Sequence[Judged]) -> dict[str, Any]:
    return {"deleted": sum(each.deleted for each in found), "entries": [_judged_json(each) for each in found]}


def _judged_json(judged: Judged) -> dict[str, Any]:
    return {
        "partition": judged.key,
        "entryId": judged.entry_id,
        "found": judged.exists,
        "deleted": judged.deleted,
        "eventId": None if judged.event is None else str(judged.event.event_id),
        "eventType": None if judged.event is None else judged.event.event_type,
        "wantedBy": [{"group": each.group, "consumer": each.consumer} for each in judged.wanted],
    }


def _claimed_json(found: Sequence[ClaimResult]) -> dict[str, Any]:
    counts = Counter(each.outcome for each in found)
    results = [
        {
            "partition": each.key,
            "entryId": each.entry_id,
            "outcome": each.outcome,
            "consumer": each.consumer,
            "idle": each.idle,
        }
        for each in found
    ]
    return {"claimed": counts[ClaimOutcome.CLAIMED] + counts[ClaimOutcome.GONE], "results": results}
