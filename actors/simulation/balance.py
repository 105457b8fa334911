"""The balance of a story: once all is quiet, an event has one end in each group, and not by somebody else's fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from ..handling import entry_order
from ..letter_terms import Reason
from ..sorting import Ignore
from .ledger import event_id_of

if TYPE_CHECKING:
    from ..system import Group, Stream
    from .ledger import Ledger

__all__ = ["balance"]


def balance(ledger: Ledger) -> None:
    """Note in the ledger what is not so."""
    for event_id, stream in _promised(ledger):
        for group in stream.read_here:
            _check_end(ledger, event_id, stream, group)
    for event_id in ledger.refused - set(ledger.accepted) - ledger.doubtful:
        if ledger.copies[event_id] or event_id in ledger.spooled:
            ledger.broken(f"{event_id} was refused, and is there")
    _check_losses(ledger)
    for letter in ledger.store.letters:
        if letter.event_id is not None and letter.reason is Reason.MAX_DELIVERIES:
            ledger.check_fault(letter.consumer_group, letter.event_id, letter.deliveries, "dead")


def _promised(ledger: Ledger) -> Iterator[tuple[UUID, Stream]]:
    """Every event that somebody may rely on: accepted, committed in the outbox, or added."""
    streams = {event_id: accepted.stream for event_id, accepted in ledger.accepted.items()}
    streams |= ledger.spooled
    for event_id, name in streams.items():
        if name in ledger.streams:
            yield event_id, ledger.streams[name]
    for (key, _), fields in ledger.entries.items():
        found, stream = event_id_of(fields), ledger.stream_of(key)
        if found is not None and found not in streams and stream is not None:
            yield found, stream


def _check_end(ledger: Ledger, event_id: UUID, stream: Stream, group: Group) -> None:
    copies = [place for place, fields in ledger.entries.items() if event_id_of(fields) == event_id]
    if not copies:
        ledger.broken(f"{event_id} was accepted for {stream.key}, and never came there")
        return
    verdicts = [ledger.verdict(key, group.name, entry_id) for key, entry_id in copies]
    if all(isinstance(verdict, Ignore) for verdict in verdicts):
        return
    end = (group.name, event_id)
    done = end in ledger.store.inbox_table.rows
    effects = ledger.effects[end]
    letters = sum((letter.consumer_group, letter.event_id) == end for letter in ledger.store.letters)
    dead = letters > 0
    if letters > 1:
        ledger.broken(f"{event_id} has {letters} dead letters in {group.name}")
    taken = [place for place in copies if place in ledger.trimmed]
    buried = any(ledger.is_buried(group.name, *place) for place in copies)
    if not (done or dead or taken or buried):
        ledger.broken(f"{event_id} has come to no end in {group.name}: it is lost")
    if done and effects != 1:
        ledger.broken(f"{event_id} is done in {group.name} with {effects} effects")
    if not done and effects:
        ledger.broken(f"{event_id} has an effect in {group.name}, and the inbox does not know it")
    if done and dead:
        ledger.broken(f"{event_id} has an effect and a dead letter in {group.name}")


def _check_losses(ledger: Ledger) -> None:
    """Nothing is told as lost where nobody took anything away."""
    for loss, _ in ledger.store.losses.table.rows.values():
        between = (entry_order(loss.after_id), entry_order(loss.before_id))
        taken = [key for key, entry in ledger.trimmed if between[0] < entry_order(entry) < between[1]]
        if taken.count(loss.stream) < (loss.entries or 0):
            ledger.broken(f"{loss.entries} entries of {loss.stream} are told as lost for {loss.group}, and are not")
