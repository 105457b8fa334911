"""Every reply of Redis has an action: the table.

The table is data, printed by the command line and decided by in the producer, the listener and the health monitor.
Nothing in it is an event's own fault: no row may cost a delivery or a restart. The first row that matches wins.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from attrs import field, frozen

__all__ = ["REPLIES", "UNCLASSIFIED", "Kind", "Reply"]


class Kind(enum.Enum):
    """What to do, in one word."""

    WAIT = "wait"  # it passes by itself: back off and try again
    REROUTE = "reroute"  # another node is the master now: refresh the topology, reconnect
    REDIRECT = "redirect"  # this one command belongs to another node
    REPAIR = "repair"  # something is missing that we can make again
    DEGRADE = "degrade"  # the server refuses writes: go on with what it allows, spool the rest
    CONFIG = "config"  # a person must change settings: fail permanently and loudly
    DOWNGRADE = "downgrade"  # the server is too old for the command: take the older way
    RECONNECT = "reconnect"  # the connection is gone: open another one
    BUG = "bug"  # our own mistake
    NORMAL = "normal"  # no error at all


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    return None if pattern is None else re.compile(pattern)


@frozen(kw_only=True)
class Reply:
    """A row: how a reply is recognised, what it means, what to do.

    Attributes:
        name: the row's identifier.
        text: the reply as people read it.
        pattern: matched from the start of the error line; None for what is no line (a broken connection).
        meaning: when the server sends it.
        kind: what to do, in one word.
        action: what to do, in one sentence.
        shuts_gate: whether nothing that needs Redis can work until it has passed.
    """

    name: str
    text: str
    pattern: re.Pattern[str] | None = field(converter=_compiled)
    meaning: str
    kind: Kind
    action: str
    shuts_gate: bool = False


REPLIES: Final[tuple[Reply, ...]] = (
    Reply(
        name="loading",
        text="LOADING …",
        pattern=r"LOADING\b",
        meaning="the server reads its data set",
        kind=Kind.WAIT,
        action="back off 0.1 to 5 s; do not make groups again, the data are coming",
        shuts_gate=True,
    ),
    Reply(
        name="slot-not-served",
        text="CLUSTERDOWN Hash slot not served",
        pattern=r"CLUSTERDOWN Hash slot not served",
        meaning="the slot is assigned to no node",
        kind=Kind.WAIT,
        action="refresh the topology, pause the partitions of that slot, raise an alarm",
    ),
    Reply(
        name="cluster-read-only",
        text="CLUSTERDOWN … only accepts read commands",
        pattern=r"CLUSTERDOWN .*only accepts read",
        meaning="the cluster is down with cluster-allow-reads-when-down",
        kind=Kind.WAIT,
        action="pause groups, probe every 1 to 10 s; XREAD and XRANGE are answered, group commands are not",
        shuts_gate=True,
    ),
    Reply(
        name="cluster-down",
        text="CLUSTERDOWN The cluster is down",
        pattern=r"CLUSTERDOWN\b",
        meaning="this node sees the cluster as failed",
        kind=Kind.WAIT,
        action="pause groups, probe every 1 to 10 s; PING and PUBLISH are still answered, so they prove nothing",
        shuts_gate=True,
    ),
    Reply(
        name="master-down",
        text="MASTERDOWN …",
        pattern=r"MASTERDOWN\b",
        meaning="a replica that lost its master and refuses stale reads",
        kind=Kind.REROUTE,
        action="refresh the topology; never take it for the master",
        shuts_gate=True,
    ),
    Reply(
        name="read-only",
        text="READONLY …",
        pattern=r"READONLY\b",
        meaning="a replica, or a master that was demoted",
        kind=Kind.REROUTE,
        action="refresh the topology and reconnect; publishers spool meanwhile",
        shuts_gate=True,
    ),
    Reply(
        name="redirected",
        text="REDIRECT host:port",
        pattern=r"REDIRECT \S+:\d+",
        meaning="Valkey 8 and later: a replica names its master, to clients that asked for it (CLIENT CAPA redirect)",
        kind=Kind.REROUTE,
        action="connect to the master that it names; publishers spool meanwhile",
        shuts_gate=True,
    ),
    Reply(
        name="moved",
        text="MOVED slot host:port",
        pattern=r"MOVED \d+ ",
        meaning="the slot lives on another node; on Valkey also to a blocked reader, at a failover",
        kind=Kind.REDIRECT,
        action="update the slot and retry there; after 5 hops refresh everything; an empty host is the same host",
    ),
    Reply(
        name="ask",
        text="ASK slot host:port",
        pattern=r"ASK \d+ ",
        meaning="the slot is being migrated and the key has gone over; on Valkey also to a blocked reader",
        kind=Kind.REDIRECT,
        action="send ASKING and the command there, once; leave the slot map as it is",
    ),
    Reply(
        name="try-again",
        text="TRYAGAIN …",
        pattern=r"TRYAGAIN\b",
        meaning="a command of several keys during a migration",
        kind=Kind.WAIT,
        action="retry after 50 to 500 ms",
    ),
    Reply(
        name="cross-slot",
        text="CROSSSLOT … / ERR … attempted to access a non local key …",
        pattern=r"CROSSSLOT\b|ERR (Script a|A)ttempted to access (a non local key|keys that do not hash)",
        meaning="keys of two slots in one command or script",
        kind=Kind.BUG,
        action="give keys that belong together one hash tag; checked when streams are declared",
    ),
    Reply(
        name="group-destroyed",
        text="NOGROUP the consumer group this client was blocked on no longer exists",
        pattern=r"NOGROUP the consumer group this client was blocked on",
        meaning="XGROUP DESTROY during a blocking read; from 7.2 on also deletion of the key",
        kind=Kind.REPAIR,
        action="look up the slot's owner, see whether the key is there, make the group again at the stored position",
    ),
    Reply(
        name="no-group",
        text="NOGROUP No such key … or consumer group …",
        pattern=r"NOGROUP\b",
        meaning="the group or its stream is absent",
        kind=Kind.REPAIR,
        action="look up the slot's owner, see whether the key is there, make the group again at the stored position",
    ),
    Reply(
        name="no-key",
        text="ERR The XGROUP subcommand requires the key to exist …",
        pattern=r"ERR The XGROUP subcommand requires the key to exist",
        meaning="XGROUP without MKSTREAM on an absent stream",
        kind=Kind.REPAIR,
        action="create the group with MKSTREAM",
    ),
    Reply(
        name="unblocked-key-gone",
        text="UNBLOCKED the stream key no longer exists",
        pattern=r"UNBLOCKED the stream key no longer exists",
        meaning="up to 7.0: deletion, flush, change of type, or migration of the slot",
        kind=Kind.REPAIR,
        action="look up the slot's owner first: only if the present owner has no key was it a deletion",
    ),
    Reply(
        name="unblocked-failover",
        text="UNBLOCKED force unblock … instance state changed (master -> replica?)",
        pattern=r"UNBLOCKED force unblock",
        meaning="failover: the node is a replica now, and closes the connection",
        kind=Kind.REROUTE,
        action="refresh the topology and read on; pending entries survive",
    ),
    Reply(
        name="unblocked-by-client",
        text="UNBLOCKED client unblocked via CLIENT UNBLOCK",
        pattern=r"UNBLOCKED client unblocked",
        meaning="an operator, or our own wake-up",
        kind=Kind.NORMAL,
        action="read again",
    ),
    Reply(
        name="busy-group",
        text="BUSYGROUP …",
        pattern=r"BUSYGROUP\b",
        meaning="the group exists already",
        kind=Kind.NORMAL,
        action="take it as success",
    ),
    Reply(
        name="out-of-memory",
        text="OOM command not allowed …",
        pattern=r"OOM\b",
        meaning="maxmemory is reached and nothing may be evicted; reading, acknowledging and trimming are allowed",
        kind=Kind.DEGRADE,
        action="publishers spool to PostgreSQL, readers go on, retention trims what is archived, raise an alarm",
    ),
    Reply(
        name="disk-error",
        text="MISCONF … RDB / … AOF",
        pattern=r"MISCONF\b",
        meaning="the server cannot write its disk and has stopped all writes, XREADGROUP and XACK too",
        kind=Kind.DEGRADE,
        action="pause groups, publishers spool, keep finished acknowledgements, raise an alarm that names the disk",
        shuts_gate=True,
    ),
    Reply(
        name="no-replicas",
        text="NOREPLICAS …",
        pattern=r"NOREPLICAS\b",
        meaning="fewer good replicas than min-replicas-to-write; all writes are refused, XREADGROUP and XACK too",
        kind=Kind.DEGRADE,
        action="pause groups, publishers spool, keep finished acknowledgements: they may be repeated",
        shuts_gate=True,
    ),
    Reply(
        name="credentials",
        text="NOAUTH … / WRONGPASS …",
        pattern=r"NOAUTH\b|WRONGPASS\b|ERR (invalid password|Client sent AUTH|AUTH <password> called without)",
        meaning="user or password is missing or wrong",
        kind=Kind.CONFIG,
        action="fail permanently; try again every 60 s for a rotated password, raise an alarm; never a hot loop",
        shuts_gate=True,
    ),
    Reply(
        name="no-permission",
        text="NOPERM …",
        pattern=r"NOPERM\b",
        meaning="the ACL forbids this command, key or channel",
        kind=Kind.CONFIG,
        action="fail the feature that needs it, permanently, naming the command",
    ),
    Reply(
        name="protected-mode",
        text="DENIED … protected mode …",
        pattern=r"DENIED\b",
        meaning="the server has no password and serves its own machine only; it closes the connection",
        kind=Kind.CONFIG,
        action="fail permanently: give the server a password or an ACL user, or switch protected-mode off",
        shuts_gate=True,
    ),
    Reply(
        name="no-database",
        text="ERR DB index is out of range / SELECT is not allowed in cluster mode",
        pattern=r"ERR (DB index is out of range|SELECT is not allowed in cluster mode)",
        meaning="the server has no database of that number; a cluster has only 0",
        kind=Kind.CONFIG,
        action="fail permanently, naming the database of the settings",
        shuts_gate=True,
    ),
    Reply(
        name="no-cluster",
        text="ERR This instance has cluster support disabled",
        pattern=r"ERR This instance has cluster support disabled",
        meaning="the settings speak of a cluster, and the server is not part of one",
        kind=Kind.CONFIG,
        action="fail permanently: use redis:// for this server, or start it with cluster-enabled",
        shuts_gate=True,
    ),
    Reply(
        name="busy-script",
        text="BUSY Redis is busy running a script …",
        pattern=r"BUSY\b",
        meaning="a slow script or function; even PING is refused",
        kind=Kind.WAIT,
        action="back off 0.1 to 5 s; never SCRIPT KILL by ourselves",
        shuts_gate=True,
    ),
    Reply(
        name="no-script",
        text="NOSCRIPT …",
        pattern=r"NOSCRIPT\b",
        meaning="restart, failover or SCRIPT FLUSH: the script's text is gone; nothing has run",
        kind=Kind.REPAIR,
        action="send the text with EVAL",
    ),
    Reply(
        name="transaction-refused",
        text="EXECABORT …",
        pattern=r"EXECABORT\b",
        meaning="a command was refused while the transaction was queued; nothing has run",
        kind=Kind.BUG,
        action="look at the first error among the queued commands",
    ),
    Reply(
        name="wrong-type",
        text="WRONGTYPE …",
        pattern=r"WRONGTYPE\b",
        meaning="the key holds something else, not a stream",
        kind=Kind.CONFIG,
        action="fail permanently, with an alarm that names the key and its type",
    ),
    Reply(
        name="too-many-clients",
        text="ERR max number of clients reached",
        pattern=r"ERR max number of clients",
        meaning="the server's limit of connections",
        kind=Kind.WAIT,
        action="back off with jitter, raise an alarm",
        shuts_gate=True,
    ),
    Reply(
        name="unknown-command",
        text="ERR unknown command … / syntax error",
        pattern=r"ERR (unknown (sub)?command|syntax error|Unknown subcommand)",
        meaning="the server does not have the command, or this form of it",
        kind=Kind.DOWNGRADE,
        action="lower the capability and take the older way",
    ),
    Reply(
        name="no-protocol",
        text="NOPROTO …",
        pattern=r"NOPROTO\b",
        meaning="the server, or what stands before it, does not speak this version of RESP",
        kind=Kind.DOWNGRADE,
        action="log in with RESP2",
    ),
    Reply(
        name="protocol-error",
        text="ERR Protocol error: …",
        pattern=r"ERR Protocol error",
        meaning="what was sent is no RESP, or longer than proto-max-bulk-len; the server closes the connection",
        kind=Kind.BUG,
        action="send smaller values; what other commands were under way on the connection is of unknown outcome",
    ),
    Reply(
        name="id-too-small",
        text="ERR … equal or smaller than the target stream top item",
        pattern=r"ERR The ID specified in XADD is equal or smaller",
        meaning="XADD with an explicit id behind the last one: a clock, or a copy",
        kind=Kind.BUG,
        action="let the server make ids (`*`); repair by the next id",
    ),
    Reply(
        name="silence",
        text="(no byte before the deadline)",
        pattern=None,
        meaning="frozen server, half-open TCP, partition; the fate of what was sent is unknown",
        kind=Kind.RECONNECT,
        action="close the connection, open another one; in a cluster ask another node for the topology",
        shuts_gate=True,
    ),
    Reply(
        name="disconnected",
        text="(connect refused, end of stream, reset)",
        pattern=None,
        meaning="server gone or restarted, CLIENT KILL, output buffer limit; the fate of what was sent is unknown",
        kind=Kind.RECONNECT,
        action="reconnect with full jitter, 0.05 to 2 s; send again only what was not sent or does no harm twice",
        shuts_gate=True,
    ),
    Reply(
        name="refused-by-link",
        text="(refused before sending)",
        pattern=None,
        meaning="the command would harm the connection that it would run on",
        kind=Kind.BUG,
        action="use what the message says",
    ),
    Reply(
        name="nothing-new",
        text="(nil from a blocking read)",
        pattern=None,
        meaning="nothing has come; an empty stream is healthy",
        kind=Kind.NORMAL,
        action="note progress and read again",
    ),
)

UNCLASSIFIED: Final = Reply(
    name="unclassified",
    text="(anything else)",
    pattern=None,
    meaning="no reply of the table, or no error of Redis at all",
    kind=Kind.BUG,
    action="hand it to whoever called",
)
