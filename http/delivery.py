"""How delivery stands, as JSON values: for the page, and for whoever asks whether the system is ready. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ..actors.delivery_view import DeliveryView, RetryView
from ..actors.lease_table import LeaseView
from ..actors.loss_table import RecordedLoss
from ..actors.losses import Loss
from ..actors.member_table import MemberView
from ..actors.relay import OutboxView
from ..actors.replay_table import Replay
from ..runtime.masking import mask_text
from .letters import group_json, order_json
from .views import iso

__all__ = ["delivery_json", "losses_json", "outbox_json"]


def outbox_json(waiting: Iterable[OutboxView]) -> list[dict[str, Any]]:
    """What waits in the outbox, by stream; `oldest` in seconds."""
    return [
        {
            "stream": each.stream,
            "waiting": each.waiting,
            "oldest": round(each.oldest, 3),
            "blocked": mask_text(each.blocked) if each.blocked else None,
        }
        for each in waiting
    ]


def losses_json(found: Iterable[Loss]) -> list[dict[str, Any]]:
    """What this process has met with of what was trimmed unread."""
    return [{"stream": each.stream, "group": each.group, "entries": each.entries} for each in found]


def delivery_json(view: DeliveryView, seen: datetime) -> dict[str, Any]:
    """The rest, as it was at `seen`: times that are so many seconds off are told as times."""
    names = {each.member.process: each.member.instance for each in view.members}
    return {
        "retries": [_retry_json(each, seen) for each in view.retries],
        "letters": {"dead": view.dead, "groups": [group_json(each) for each in view.letters]},
        "orders": [order_json(each) for each in view.orders],
        "replays": [_replay_json(each) for each in view.replays],
        "losses": [_loss_json(each) for each in view.losses],
        "members": [_member_json(each, view, seen) for each in view.members],
        "leases": [_lease_json(each, names) for each in view.leases],
    }


def _retry_json(retry: RetryView, seen: datetime) -> dict[str, Any]:
    return {
        "group": retry.consumer_group,
        "stream": retry.stream,
        "waiting": retry.waiting,
        "parked": retry.parked,
        "attempts": retry.attempts,
        "since": iso(seen - timedelta(seconds=retry.oldest)),
        "due": None if retry.due_in is None else iso(seen + timedelta(seconds=retry.due_in)),
    }


def _replay_json(replay: Replay) -> dict[str, Any]:
    return {
        "id": str(replay.id),
        "stream": replay.stream,
        "from": replay.from_id,
        "to": replay.to_id,
        "target": replay.target_stream or replay.consumer_group,
        "toGroup": replay.consumer_group is not None,
        "state": replay.state,
        "total": replay.total,
        "replayed": replay.replayed,
        "rate": replay.rate,
        "orderedBy": replay.ordered_by,
        "orderedAt": None if replay.ordered_at is None else iso(replay.ordered_at),
    }


def _loss_json(loss: RecordedLoss) -> dict[str, Any]:
    return {
        "group": loss.group,
        "stream": loss.stream,
        "after": loss.after_id,
        "before": loss.before_id,
        "entries": loss.entries,
        "detectedAt": iso(loss.detected_at),
    }


def _member_json(seen: MemberView, view: DeliveryView, now: datetime) -> dict[str, Any]:
    member = seen.member
    return {
        "process": str(member.process),
        "isThis": member.process == view.process,
        "instance": member.instance,
        "host": member.host,
        "pid": member.pid,
        "version": member.version,
        "partitions": sum(each.owner == member.process and not each.is_free for each in view.leases),
        "startedAt": iso(now - timedelta(seconds=seen.started_ago)),
        "seenAt": iso(now - timedelta(seconds=seen.seen_ago)),
    }


def _lease_json(lease: LeaseView, names: Mapping[Any, str]) -> dict[str, Any]:
    """Who has a partition: an instance's name, or a process' number where it gives no sign of life any more."""
    owner = None if lease.is_free or lease.owner is None else names.get(lease.owner, str(lease.owner))
    return {"group": lease.consumer_group, "stream": lease.stream, "owner": owner, "epoch": lease.epoch}
