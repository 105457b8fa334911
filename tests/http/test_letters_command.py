"""``penstock dead-letters`` and ``penstock ledger`` against a real front end and a real database."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import frozen
from click.testing import CliRunner

from penstock.actors.letter_orders import LetterOrders
from penstock.actors.store import InboxEntry
from penstock.http.commands.dead_letters import dead_letters
from penstock.http.commands.ledger import ledger
from penstock.http.commands.remote import Answer, Remote, Unreachable
from penstock.runtime.cli import CommandError
from penstock.runtime.postgres import Pool, PostgresOptions
from penstock.runtime.supervision import ChildSpec, Supervisor, Tree

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from letter_store import LetterStore, desk_over

_COMMANDS = {"dead-letters": dead_letters, "ledger": ledger}


@frozen
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def _invoke(name: str, arguments: list[str], stdin: bytes) -> Done:
    """The command in this process: one of its own takes a second to start. What `main` makes of errors is told here."""
    result = CliRunner().invoke(_COMMANDS[name], arguments, input=stdin)
    error = result.exception
    if isinstance(error, CommandError):
        return Done(error.exit_code, result.stdout, f"{result.stderr}penstock: {error}\n")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Done(result.exit_code, result.stdout, result.stderr)


class Site(LetterStore):
    """A front end over a desk, its store, and the command."""

    def __init__(self, front_end: Any, pool: Pool) -> None:
        super().__init__(pool)
        self.deployment = front_end.deployment
        self.url = f"http://127.0.0.1:{front_end.port}"

    async def run(self, name: str, *arguments: str, stdin: bytes = b"") -> Done:
        return await trio.to_thread.run_sync(_invoke, name, [*arguments, "--url", self.url], stdin)

    async def letters(self, *arguments: str) -> Done:
        return await self.run("dead-letters", *arguments)

    async def json(self, *arguments: str) -> Any:
        done = await self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def statuses(self) -> list[str]:
        letters = await self.json("dead-letters", "list", "--status", "any")
        return [each["status"] for each in reversed(letters)]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """The actor that works orders off is running."""
        body = LetterOrders(
            self.deployment.system,
            self.store,
            self.deployment.letters,
            lambda: None,  # type: ignore[arg-type, return-value]
            redis_gate=self.deployment.gates["redis"],
            redis_trouble=lambda _: None,
        )
        tree = Tree(Supervisor("root", [ChildSpec(id="dead-letters", body=body)]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            yield
            tree.stop("done")


@pytest.fixture
async def site(serving: Any, database: PostgresOptions) -> AsyncIterator[Site]:
    async with serving() as front_end, desk_over(database, front_end.deployment) as pool:
        front_end.deployment.gates["redis"].shut("not here")
        yield Site(front_end, pool)


# Looking -------------------------------------------------------------------------------------------------------------


async def test_letters_are_a_table_for_people_and_json_for_scripts(site: Site) -> None:
    ids = await site.bury_many(2)
    done = await site.letters("list")
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split()[:5] == ["id", "dead", "since", "stream", "group"]
    assert [line.split()[0] for line in lines] == [str(ids[1]), str(ids[0])]
    assert "order-events  billing  ORDER" in lines[0]
    assert lines[0].endswith("ValueError: no funds")
    assert [each["id"] for each in await site.json("dead-letters", "list", "--limit", "1")] == [ids[1]]
    assert await site.json("dead-letters", "list", "--since", "1h", "--group", "billing", "--until", "2026-01-01") == []


async def test_groups_say_what_died_of_one_error(site: Site) -> None:
    await site.bury_many(3)
    (group,) = await site.json("dead-letters", "groups")
    assert group["count"] == 3
    done = await site.letters("groups")
    assert group["fingerprint"] in done.stdout


async def test_one_is_shown_whole_and_without_secrets(site: Site) -> None:
    number = await site.bury()
    await site.letters("note", str(number), "asked the bank")
    done = await site.letters("show", str(number))
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    assert "Traceback" in done.stdout or "ValueError: no funds" in done.stdout
    (noted,) = [line for line in done.stdout.splitlines() if "noted" in line]
    assert "@" in noted
    assert noted.endswith("asked the bank")


async def test_one_that_is_not_there_is_one_clear_line(site: Site) -> None:
    for arguments in (("show", "7"), ("note", "7", "x")):
        done = await site.letters(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert "no dead letter with the id 7" in line


# Changing ------------------------------------------------------------------------------------------------------------


async def test_nothing_is_done_to_letters_that_nobody_selected(site: Site) -> None:
    await site.bury_many(2)
    for command in ("replay", "discard"):
        done = await site.letters(command)
        assert done.returncode == 2
        assert "--all" in done.stderr
        done = await site.letters(command, "--all", "--group", "billing")
        assert done.returncode == 2
        done = await site.letters(command, "--all")  # nobody to ask
        assert done.returncode == 2
        assert "--yes" in done.stderr
        assert "2 dead letters" in done.stderr
    assert await site.statuses() == ["dead", "dead"]


async def test_a_dry_run_says_how_many_and_what_is_left_out(site: Site) -> None:
    await site.bury_many(3)
    await site.bury(reason="trimmed", fields=None)
    done = await site.letters("replay", "--all", "--dry-run", "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 dead letters would be replayed (without 1 of which nothing is left")
    assert "1 beyond the limit" in done.stdout
    assert (await site.json("dead-letters", "discard", "--all", "--dry-run"))["letters"] == 4
    assert set(await site.statuses()) == {"dead"}


async def test_a_replay_is_waited_for_and_told(site: Site) -> None:
    await site.bury_many(3)
    async with site.working():
        done = await site.letters("replay", "--group", "billing", "--yes", "--rate", "1000", "--note", "mended")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 of 3 dead letters moved to be tried again, 3 waiting\norder ")
    (order,) = await site.json("dead-letters", "orders")
    assert (order["state"], order["moved"], order["note"]) == ("done", 3, "mended")
    assert "@" in order["orderedBy"]
    assert await site.statuses() == ["replaying"] * 3


async def test_one_is_replayed_without_a_question_and_can_be_stopped(site: Site) -> None:
    ids = await site.bury_many(2)
    order = await site.json("dead-letters", "replay", str(ids[0]), "--no-wait")
    assert (order["total"], order["state"]) == (1, "running")
    assert await site.statuses() == ["replaying", "dead"]
    done = await site.letters("orders", "--cancel", order["id"])
    assert done.returncode == 0, done.stderr
    assert await site.statuses() == ["dead", "dead"]
    done = await site.letters("orders")
    assert order["id"] in done.stdout


async def test_an_order_is_waited_for_through_a_restart_of_the_system(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing answers, then the system does, and its database not yet; the order goes on meanwhile."""
    away: list[Answer | Unreachable] = [Unreachable("nothing answers", 2), Answer(503, b"{}")]
    request = Remote.request

    def asked(remote: Remote, method: str, path: str, *words: Any) -> Answer:
        if method == "GET" and away:
            found = away.pop(0)
            if isinstance(found, Unreachable):
                raise found
            return found
        return request(remote, method, path, *words)

    monkeypatch.setattr(Remote, "request", asked)
    await site.bury_many(2)
    async with site.working():
        done = await site.letters("replay", "--all", "--yes", "--rate", "1000")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 dead letters moved" in done.stdout
    assert away == []


async def test_there_must_be_something_to_replay(site: Site) -> None:
    number = await site.bury(consumer_group="of-another-system")
    done = await site.letters("replay", str(number))
    assert done.returncode == 1
    assert "whose group is not declared here" in done.stderr


async def test_ids_are_discarded_and_those_that_were_not_dead_are_counted(site: Site) -> None:
    ids = await site.bury_many(3)
    done = await site.letters("discard", str(ids[0]), str(ids[1]), "--yes", "--note", "test data")
    assert (done.returncode, done.stdout) == (0, "2 dead letters discarded\n")
    done = await site.letters("discard", str(ids[1]), str(ids[2]), "--yes")
    assert done.returncode == 1
    assert "1 of 2 are not there, or not dead" in done.stderr
    assert await site.statuses() == ["discarded"] * 3


@pytest.mark.parametrize("arguments", [("list", "--since", "yesterday"), ("list", "--reason", "mood"), ("show", "x")])
async def test_a_mistake_is_exit_code_2(site: Site, arguments: tuple[str, ...]) -> None:
    assert (await site.letters(*arguments)).returncode == 2


# ledger --------------------------------------------------------------------------------------------------------------


async def test_the_ledger_says_what_came_of_events(site: Site) -> None:
    done_id, dead_id = uuid4(), uuid4()
    async with site.store.transaction() as transaction:
        await transaction.first_time("billing", [InboxEntry(done_id, "order-events", "5-0")])
    await site.bury(event_id=dead_id)
    done = await site.run("ledger", str(done_id), str(dead_id))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[:4] for line in lines] == [
        [str(done_id), "order-events", "billing", "done"],
        [str(dead_id), "order-events", "billing", "dead"],
    ]
    assert done.stderr == "2 events: 1 done, 1 dead\n"
    done = await site.run("ledger", str(done_id), str(dead_id), "--open", "--check", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["eventId"] == str(dead_id)


async def test_thousands_come_from_a_file_in_whatever_form_publish_printed_them(site: Site, tmp_path: Path) -> None:
    ids = [uuid4() for _ in range(1_200)]
    async with site.store.transaction() as transaction:
        rows = [InboxEntry(event_id, "order-events", f"5-{n}") for n, event_id in enumerate(ids)]
        await transaction.first_time("billing", rows)
    file = tmp_path / "ids"
    file.write_text(
        "".join(f"{i}  5-0\n" if n % 2 else json.dumps({"eventId": str(i)}) + "\n\n" for n, i in enumerate(ids))
    )
    done = await site.run("ledger", "--from-file", str(file), "--check", "--open")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "1,200 events: 1,200 done\n"
    assert len(done.stdout.splitlines()) == 1
    done = await site.run("ledger", "--from-file", "-", stdin=b"\nnonsense\n")
    assert done.returncode == 2
    assert "line 2" in done.stderr


async def test_the_summary_is_of_all(site: Site) -> None:
    await site.bury_many(2)
    (line,) = await site.json("ledger", "--summary")
    assert (line["group"], line["dead"], line["unread"]) == ("billing", 2, None)
    done = await site.run("ledger", "--summary")
    assert done.stdout.splitlines()[1].split() == ["order-events", "billing", "0", "0", "2", "0", "0", "0", "-", "-"]


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("--summary", "x")])
async def test_what_is_no_question_is_exit_code_2(site: Site, arguments: tuple[str, ...]) -> None:
    assert (await site.run("ledger", *arguments)).returncode == 2
