"""The check of the checks: each thing that must never happen is planted, and must be noticed; a sound run is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from system_book import Effect, Facts, Letter, Sent, check

GROUPS = ("ledger", "shipping")
PLANS = ("ok", "retry-1", "chain:ok", "chain:permanent", "permanent", "ok")


def sound() -> Facts:
    """Six events of one key in two groups, and two that were published by a handler; one refused, one unknown."""
    sent = {f"e{number}": Sent(f"e{number}", "k", number, plan) for number, plan in enumerate(PLANS)}
    for each in sent.values():
        each.accepted.append(("p1", 1.0 + each.number, "redis"))
    sent["refused"] = Sent("refused", None, 90, "ok")
    sent["unknown"] = Sent("unknown", None, 91, "ok", unknown=True)
    alive = [each for each in sent.values() if each.accepted and each.plan != "permanent"] + [sent["unknown"]]
    effects = [
        Effect(row, group, each.event_id, each.key, each.number)
        for row, (group, each) in enumerate((group, each) for group in GROUPS for each in alive)
    ]
    effects.append(Effect(100, "booking", "payment-1", None, 2, origin="e2"))
    letters = [Letter(group, "e4", "orders", "4-0", "permanent") for group in GROUPS]
    letters += [Letter(group, None, "orders", "9-9", "undecodable") for group in GROUPS]
    letters.append(Letter("booking", "payment-2", "payments", "2-0", "permanent"))
    return Facts(
        sent=sent,
        effects=effects,
        letters=letters,
        groups=GROUPS,
        ordered=("ledger",),
        chained="booking",
        broken=frozenset({("orders", "9-9")}),
    )


def kinds(facts: Facts) -> set[str]:
    return {each.kind for each in check(facts)}


def without(facts: Facts, group: str, event_id: str) -> list[Effect]:
    return [each for each in facts.effects if (each.group, each.event_id) != (group, event_id)]


def swapped(facts: Facts) -> list[Effect]:
    """The first two of the key, the other way round in the ordered group."""
    first, second, *rest = facts.effects
    return [evolve(first, row=second.row), evolve(second, row=first.row), *rest]


def test_a_sound_run_is_not_complained_of() -> None:
    assert check(sound()) == []


PLANTED: dict[str, tuple[str, Callable[[Facts], Facts]]] = {
    "a second effect": (
        "DUPLICATE",
        lambda facts: evolve(facts, effects=[*facts.effects, Effect(50, "shipping", "e1", "k", 1)]),
    ),
    "a lost effect": ("LOST", lambda facts: evolve(facts, effects=without(facts, "shipping", "e0"))),
    "a lost letter": ("LOST", lambda facts: evolve(facts, letters=facts.letters[1:])),
    "a broken order": ("ORDER", lambda facts: evolve(facts, effects=swapped(facts))),
    "done and dead": (
        "TWO ENDS",
        lambda facts: evolve(facts, letters=[*facts.letters, Letter("ledger", "e0", "orders", "0-0", "permanent")]),
    ),
    "an innocent that died": (
        "UNEXPLAINED DEATH",
        lambda facts: evolve(
            facts,
            effects=without(facts, "ledger", "e1"),
            letters=[*facts.letters, Letter("ledger", "e1", "orders", "1-0", "max_deliveries")],
        ),
    ),
    "dead for another reason than planned": (
        "UNEXPLAINED DEATH",
        lambda facts: evolve(facts, letters=[evolve(facts.letters[0], reason="max_deliveries"), *facts.letters[1:]]),
    ),
    "alive against its plan": (
        "UNEXPLAINED EFFECT",
        lambda facts: evolve(
            facts, letters=facts.letters[1:], effects=[*facts.effects, Effect(60, "ledger", "e4", "k", 9)]
        ),
    ),
    "refused, but done": (
        "REFUSED, BUT DONE",
        lambda facts: evolve(facts, effects=[*facts.effects, Effect(70, "shipping", "refused", None, 90)]),
    ),
    "an event that nobody sent": (
        "STRANGER",
        lambda facts: evolve(facts, effects=[*facts.effects, Effect(80, "shipping", "e77", None, 1)]),
    ),
    "an undecodable entry that vanished": (
        "LOST",
        lambda facts: evolve(facts, letters=[each for each in facts.letters if each.event_id is not None]),
    ),
    "a payment that was never published": (
        "LOST",
        lambda facts: evolve(facts, effects=[each for each in facts.effects if each.group != "booking"]),
    ),
    "a payment that was published twice": (
        "DUPLICATE",
        lambda facts: evolve(facts, effects=[*facts.effects, Effect(101, "booking", "other", None, 2, origin="e2")]),
    ),
    "a payment of a transaction that was rolled back": (
        "HALF A TRANSACTION",
        lambda facts: evolve(facts, effects=[*facts.effects, Effect(102, "booking", "stray", None, 1, origin="e99")]),
    ),
    "a dead payment too many": (
        "UNEXPLAINED DEATH",
        lambda facts: evolve(facts, letters=[*facts.letters, facts.letters[-1]]),
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_must_never_happen_is_noticed(planted: str) -> None:
    kind, plant = PLANTED[planted]
    assert kind in kinds(plant(sound()))


def test_what_a_failover_may_lose_is_allowed_and_nothing_else() -> None:
    facts = sound()
    lost = evolve(facts, effects=without(evolve(facts, effects=without(facts, "ledger", "e5")), "shipping", "e5"))
    assert "LOST" in kinds(lost)
    assert kinds(evolve(lost, may_lose=frozenset({"e5"}))) == set()
    assert "LOST" in kinds(evolve(lost, may_lose=frozenset({"e1"})))


def test_what_two_processes_died_with_may_be_taken_for_poison() -> None:
    facts = sound()
    letters = [*facts.letters, Letter("shipping", "e0", "orders", "0-0", "poison")]
    poisoned = evolve(facts, effects=without(facts, "shipping", "e0"), letters=letters)
    assert kinds(evolve(poisoned, kills=1)) == {"UNEXPLAINED DEATH"}
    assert kinds(evolve(poisoned, kills=2)) == set()


def test_the_ids_are_named() -> None:
    facts = sound()
    (found,) = check(evolve(facts, effects=without(facts, "shipping", "e0")))
    assert found.ids == ("e0",)
