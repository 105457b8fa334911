"""The table of steps: both stores, which must not differ."""

from __future__ import annotations

from uuid import uuid4

from attrs import evolve

from penstock.actors.step_table import Step, StepState
from penstock.actors.store import Store


def step(**changes: object) -> Step:
    return evolve(Step("mails", uuid4(), "mail", "orders"), **changes)


async def test_a_step_is_new_then_begun_then_done(store: Store) -> None:
    mail = step()
    assert await store.steps.begin(mail) is StepState.NEW
    assert await store.steps.begin(mail) is StepState.BEGUN
    await store.steps.end(mail)
    assert await store.steps.begin(mail) is StepState.DONE
    await store.steps.withdraw(mail)
    assert await store.steps.begin(mail) is StepState.DONE


async def test_steps_are_told_apart_by_group_event_and_name(store: Store) -> None:
    mail = step()
    await store.steps.begin(mail)
    for other in (evolve(mail, group="sms"), evolve(mail, event_id=uuid4()), evolve(mail, name="bill")):
        assert await store.steps.begin(other) is StepState.NEW


async def test_what_is_withdrawn_was_never_begun(store: Store) -> None:
    mail = step()
    await store.steps.begin(mail)
    await store.steps.withdraw(mail)
    assert await store.steps.begin(mail) is StepState.NEW


async def test_what_was_never_begun_cannot_be_ended(store: Store) -> None:
    mail = step()
    await store.steps.end(mail)
    assert await store.steps.begin(mail) is StepState.NEW


async def test_steps_go_with_the_transaction_that_handles_their_event(store: Store) -> None:
    mail, other = step(), step()
    for each in (mail, evolve(mail, name="bill"), other, evolve(mail, group="sms")):
        await store.steps.begin(each)
        await store.steps.end(each)
    try:
        async with store.transaction() as transaction:
            await store.steps.clear(transaction, "mails", [mail.event_id])
            raise RuntimeError
    except RuntimeError:
        pass
    assert await store.steps.begin(mail) is StepState.DONE
    async with store.transaction() as transaction:
        await store.steps.clear(transaction, "mails", [mail.event_id])
    assert await store.steps.begin(mail) is StepState.NEW
    assert await store.steps.begin(evolve(mail, name="bill")) is StepState.NEW
    assert await store.steps.begin(other) is StepState.DONE
    assert await store.steps.begin(evolve(mail, group="sms")) is StepState.DONE


async def test_a_step_is_noted_while_the_handlers_transaction_is_open_and_outlives_it(store: Store) -> None:
    mail = step()
    try:
        async with store.transaction():
            await store.steps.begin(mail)
            await store.steps.end(mail)
            raise RuntimeError
    except RuntimeError:
        pass
    assert await store.steps.begin(mail) is StepState.DONE
