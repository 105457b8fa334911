"""The ledger of a run, and the pure check that it balances: what was sent against what is in the tables at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field, frozen

__all__ = ["Effect", "Facts", "Letter", "Sent", "Violation", "check", "expected_end"]

_DEADLY = 2

SHOWN = 5
"""Ids that a violation names; the rest is counted."""


@define(eq=False)
class Sent:
    """One event that a client sent, as often as it took.

    Attributes:
        event_id: made by the client.
        key: whose events must stay in order, or None.
        number: its place among those of its key.
        plan: how its handlers treat it; see `expected_end`.
        accepted: the accepting process, the seconds since the start, and where it was put; empty: never accepted.
        unknown: it may have been taken although nobody said so.
        diary: what else happened to it.
    """

    event_id: str
    key: str | None
    number: int
    plan: str
    accepted: list[tuple[str, float, str]] = field(factory=list)
    unknown: bool = False
    diary: list[str] = field(factory=list)


@frozen
class Effect:
    """A row that a handler wrote. `row` grows in the order in which the rows of one key were written."""

    row: int
    group: str
    event_id: str
    key: str | None
    number: int
    origin: str | None = None


@frozen
class Letter:
    """A dead letter."""

    group: str
    event_id: str | None
    stream: str
    entry_id: str
    reason: str
    status: str = "dead"


@frozen(kw_only=True)
class Facts:
    """All that is known when a run is over.

    Attributes:
        sent: by event id.
        effects: all rows, in any order.
        letters: all dead letters.
        groups: the groups of the stream that was sent to; those in `ordered` keep the order of a key.
        chained: the group of the stream that handlers publish to.
        broken: stream and id of entries that are no events and were added beside Penstock.
        may_lose: what was accepted may be missing (a failover lost it): the ids.
        kills: how many processes were killed with what they had in work. What two of them had in work is taken for
            poison, whatever its plan.
    """

    sent: Mapping[str, Sent]
    effects: Sequence[Effect]
    letters: Sequence[Letter]
    groups: Sequence[str]
    ordered: Sequence[str] = ()
    chained: str | None = None
    broken: frozenset[tuple[str, str]] = frozenset()
    may_lose: frozenset[str] = frozenset()
    kills: int = 0

    def is_poisoned(self, letter: Letter) -> bool:
        """Whether two processes may have died with it, and so it is dead without a fault of its own."""
        return letter.reason == "poison" and self.kills >= _DEADLY


@frozen
class Violation:
    """What must never happen, and to which events."""

    kind: str
    text: str
    ids: tuple[str, ...] = ()


def expected_end(plan: str) -> str:
    """``done``, or the reason of the dead letter, of an event with that plan in a group of the sent stream.

    Plans: ``ok``; ``retry-N`` fails N times; ``slow`` times out once; ``chain:PLAN`` publishes an event with a plan of
    its own; ``permanent`` and ``fatal`` die.
    """
    return {"permanent": "permanent", "fatal": "max_deliveries"}.get(plan, "done")


def check(facts: Facts) -> list[Violation]:
    """Everything that is wrong."""
    found = [*_duplicates(facts), *_ends(facts), *_strangers(facts), *_order(facts), *_broken_entries(facts)]
    if facts.chained is not None:
        found += _chains(facts, facts.chained)
    return found


def _violation(kind: str, what: str, ids: Iterable[str]) -> list[Violation]:
    ids = sorted(ids)
    return [Violation(kind, f"{len(ids)} {what}", tuple(ids[:SHOWN]))] if ids else []


def _duplicates(facts: Facts) -> list[Violation]:
    times = Counter((effect.group, effect.event_id) for effect in facts.effects)
    twice = {event_id for (_, event_id), count in times.items() if count > 1}
    return _violation("DUPLICATE", "events had more than one effect in a group", twice)


def _ends(facts: Facts) -> list[Violation]:
    """Each accepted event has exactly the end that its plan says, in each group."""
    found: list[Violation] = []
    for group in facts.groups:
        done = {effect.event_id for effect in facts.effects if effect.group == group}
        dead = {each.event_id: each for each in facts.letters if each.group == group and each.event_id is not None}
        accepted = {event_id: each for event_id, each in facts.sent.items() if each.accepted}
        lost = accepted.keys() - done - dead.keys() - facts.may_lose
        found += _violation("LOST", f"accepted events have no end in {group}", lost)
        found += _violation("TWO ENDS", f"events are done and dead in {group}", done & dead.keys())
        unplanned = {
            event_id
            for event_id, letter in dead.items()
            if event_id in facts.sent
            and letter.reason != expected_end(facts.sent[event_id].plan)
            and not facts.is_poisoned(letter)
        }
        found += _violation(
            "UNEXPLAINED DEATH", f"events are dead in {group}, and their plans do not say so", unplanned
        )
        survivors = {event_id for event_id in done if event_id in facts.sent} & {
            event_id for event_id, each in facts.sent.items() if expected_end(each.plan) != "done"
        }
        found += _violation("UNEXPLAINED EFFECT", f"events are done in {group} that had to die", survivors)
    return found


def _strangers(facts: Facts) -> list[Violation]:
    """Rows of events that nobody sent, or that were refused for sure."""
    refused = {event_id for event_id, each in facts.sent.items() if not each.accepted and not each.unknown}
    rows = {effect.event_id for effect in facts.effects if effect.group in facts.groups}
    rows |= {each.event_id for each in facts.letters if each.group in facts.groups and each.event_id is not None}
    return [
        *_violation("REFUSED, BUT DONE", "events were refused every time, and have an end", refused & rows),
        *_violation("STRANGER", "events have an end, and nobody sent them", rows - facts.sent.keys()),
    ]


def _order(facts: Facts) -> list[Violation]:
    found: list[Violation] = []
    for group in facts.ordered:
        by_key: dict[str, list[Effect]] = defaultdict(list)
        for effect in facts.effects:
            if effect.group == group and effect.key is not None:
                by_key[effect.key].append(effect)
        late: list[str] = []
        pair: tuple[str, str] | None = None
        for effects in by_key.values():
            furthest: Effect | None = None
            for effect in sorted(effects, key=lambda each: each.row):
                if furthest is not None and effect.number < furthest.number:
                    late.append(effect.event_id)
                    pair = pair or (furthest.event_id, effect.event_id)
                else:
                    furthest = effect
        if pair is not None:
            text = f"{len(late)} events came after a later one of their key in {group}; first {pair[0]}, then {pair[1]}"
            found.append(Violation("ORDER", text, (*pair, *late[: SHOWN - 2])))
    return found


def _broken_entries(facts: Facts) -> list[Violation]:
    """Each entry that is no event is a dead letter of each group, and nothing else is called undecodable."""
    found: list[Violation] = []
    for group in facts.groups:
        letters = {(each.stream, each.entry_id): each for each in facts.letters if each.group == group}
        undecodable = {place for place, each in letters.items() if each.reason == "undecodable"}
        poisoned = {place for place, each in letters.items() if facts.is_poisoned(each)}
        lost = {" ".join(place) for place in facts.broken - undecodable - poisoned}
        if not facts.may_lose:
            found += _violation("LOST", f"undecodable entries are no dead letters of {group}", lost)
        wrong = {" ".join(place) for place in undecodable - facts.broken if letters[place].event_id is not None}
        found += _violation("UNEXPLAINED DEATH", f"events were called undecodable in {group}", wrong)
    return found


def _chains(facts: Facts, group: str) -> list[Violation]:
    """Each order that had its effect and was to publish has one payment: an effect or a letter, as planned."""
    publisher = facts.groups[-1]
    done = {effect.event_id for effect in facts.effects if effect.group == publisher}
    chains = {event_id: each for event_id, each in facts.sent.items() if each.plan.startswith("chain:")}
    wanted = {
        event_id
        for event_id, each in chains.items()
        if event_id in done and expected_end(each.plan.removeprefix("chain:")) == "done"
    }
    paid = Counter(effect.origin for effect in facts.effects if effect.group == group)
    missing = {event_id for event_id in wanted if not paid[event_id]}
    extra = {str(origin) for origin, times in paid.items() if times > 1}
    stray = {str(origin) for origin in paid if origin not in done}
    to_die = sum(1 for event_id in chains.keys() & done if expected_end(chains[event_id].plan[6:]) != "done")
    dead = sum(each.group == group and not facts.is_poisoned(each) for each in facts.letters)
    poisoned = sum(each.group == group and facts.is_poisoned(each) for each in facts.letters)
    found = [
        *_violation("DUPLICATE", f"orders have more than one payment in {group}", extra),
        *_violation("HALF A TRANSACTION", "payments belong to orders without an effect", stray),
    ]
    if not facts.may_lose:
        if len(missing) > poisoned:
            found += _violation("LOST", f"orders have an effect and no payment in {group}", missing)
        if not to_die - poisoned <= dead <= to_die:
            found.append(Violation("UNEXPLAINED DEATH", f"{dead} payments are dead in {group}, planned were {to_die}"))
    return found
