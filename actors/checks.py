"""Start-up checks: what a server must be so that nothing is lost on it, and what somebody should mend.

They are made over fresh connections before the gate ``redis`` is opened, and every few minutes while it is open. What
would lose events keeps the gate shut, with what to do about it as its cause; it is looked at again with each probe,
so nobody has to restart anything. The rest is a warning: in the log once, in ``/readyz``, in ``penstock check``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions

from ..runtime.redis.slots import slot_of
from .findings import Finding, Severity
from .probes import probe_key

if TYPE_CHECKING:
    from ..runtime.redis import Redis
    from .system import System

__all__ = ["declared_findings", "server_findings", "skew_finding"]


OLDEST: Final = (6, 2)
"""The oldest Redis that knows the commands that we use: XAUTOCLAIM, exclusive ranges, XTRIM MINID, XADD NOMKSTREAM."""

SKEW: Final = 1.0
"""Seconds by which clocks may differ: entry ids are Redis's time, and retention and replays compare them with ours."""


# The declaration -----------------------------------------------------------------------------------------------------


def declared_findings(system: System) -> list[Finding]:
    """What can be said of a declaration without any server."""
    return [*_slots(system), *_groups(system)]


def _slots(system: System) -> Iterable[Finding]:
    for stream in system.streams.values():
        for key in stream.keys:
            tag = key[key.index("{") + 1 : key.index("}")] if re.search(r"\{[^{}]+\}", key) else key
            beside = f"{{{tag}}}:condition:x"
            if slot_of(beside) == slot_of(key) == slot_of(probe_key(key)):
                continue
            yield Finding(
                name="slots",
                where=key,
                severity=Severity.WARN,
                found="a key beside this stream cannot be in its slot, so that publish_if will not work on a cluster",
                mend="leave braces out of the stream's key",
            )


def _groups(system: System) -> Iterable[Finding]:
    """Groups of one name are one group on several streams, as far as their events differ."""
    for first, second in combinations(system.streams.values(), 2):
        shared = set(first.types) & set(second.types)
        if first.types and second.types and not shared:
            continue
        carried = ", ".join(sorted(shared)) or "any event"
        for group in first.groups:
            if group in second.groups:
                yield Finding(
                    name="groups",
                    where=group,
                    severity=Severity.WARN,
                    found=f"{first.key} and {second.key} have a group of this name and may both carry {carried}; an "
                    f"event that is published to both, under one id, has one effect",
                    mend="give the groups names of their own, or say which events each stream carries",
                )


# A server ------------------------------------------------------------------------------------------------------------


async def server_findings(server: Redis, where: str, wall: Callable[[], datetime]) -> list[Finding]:
    """How one server is set up: its version, what it keeps, its clock.

    Args:
        server: a client of this server alone.
        where: its address, without secrets.
        wall: our clock, aware.

    Raises:
        redis.exceptions.RedisError: as the link or the server says.
    """
    info: Mapping[str, Any] = await server.info()
    return [_version(info, where), _eviction(info, where), _append_only(info, where), await _clock(server, where, wall)]


def _version(info: Mapping[str, Any], where: str) -> Finding:
    redis_version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {redis_version}"
    numbers = tuple(int(part) for part in re.findall(r"\d+", redis_version)[:2])
    if numbers >= OLDEST:
        return Finding(name="version", where=where, severity=Severity.GOOD, found=name)
    return Finding(
        name="version",
        where=where,
        severity=Severity.REFUSE,
        found=f"it is {name}, which lacks commands that are needed",
        mend="use Redis 6.2 or newer, or Valkey 8 or newer",
    )


def _eviction(info: Mapping[str, Any], where: str) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    if policy == "noeviction":
        return Finding(name="eviction", where=where, severity=Severity.GOOD, found="noeviction")
    evicts = policy.startswith("allkeys") and limit > 0
    found = f"maxmemory-policy is {policy}" + (", so a full server throws away whole streams" if evicts else "")
    return Finding(
        name="eviction",
        where=where,
        severity=Severity.REFUSE if evicts else Severity.WARN,
        found=found,
        mend="CONFIG SET maxmemory-policy noeviction, and write it into the server's configuration",
    )


def _append_only(info: Mapping[str, Any], where: str) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding(name="append-only", where=where, severity=Severity.GOOD, found="append-only file on")
    return Finding(
        name="append-only",
        where=where,
        severity=Severity.WARN,
        found="the append-only file is off: a crash of the server takes what came after its last snapshot",
        mend="CONFIG SET appendonly yes, and write it into the server's configuration",
    )


async def _clock(server: Redis, where: str, wall: Callable[[], datetime]) -> Finding:
    before = wall()
    try:
        seconds, microseconds = await server.time()
    except redis.exceptions.NoPermissionError:
        return Finding(
            name="clock",
            where=where,
            severity=Severity.WARN,
            found="our user may not ask for its time, so that nobody knows whether its clock is ours",
            mend="ACL SETUSER … +time",
        )
    after = wall()
    theirs = datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))
    return skew_finding(where, theirs, before, after)


def skew_finding(where: str, theirs: datetime, before: datetime, after: datetime) -> Finding:
    """Whether a server's clock, read between two readings of ours, differs too much; the way counts for nobody."""
    early, late = (before - theirs).total_seconds(), (theirs - after).total_seconds()
    off = max(early, late)
    if off <= SKEW:
        return Finding(name="clock", where=where, severity=Severity.GOOD, found="its clock is ours")
    return Finding(
        name="clock",
        where=where,
        severity=Severity.WARN,
        found=f"its clock is {off:.1f} s {'behind' if early > late else 'ahead of'} ours",
        mend="let both hosts follow the same time servers (NTP)",
    )
