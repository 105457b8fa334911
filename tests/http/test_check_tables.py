"""``penstock check --replies`` and ``--faults`` print the tables, and touch nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from penstock.actors.channels import Broadcast
from penstock.actors.system import System
from penstock.http.commands.check import _declared, check
from penstock.runtime.postgres import ERRORS
from penstock.runtime.redis import REPLIES, UNCLASSIFIED

REDIS = [(row.text, row.action) for row in (*REPLIES, UNCLASSIFIED)]
POSTGRES = [(row.text, row.action) for row in ERRORS]


@pytest.mark.parametrize(("option", "name", "table"), [("--replies", "reply", REDIS), ("--faults", "error", POSTGRES)])
def test_every_row_is_printed(option: str, name: str, table: list[tuple[str, str]], monkeypatch) -> None:
    """Also where the settings are wrong: the tables do not depend on them."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "nonsense")
    printed = CliRunner().invoke(check, [option, "--json"])
    assert printed.exit_code == 0, printed.output
    assert [(row[name], row["action"]) for row in json.loads(printed.output)] == table
    for_people = CliRunner().invoke(check, [option])
    assert for_people.exit_code == 0
    assert for_people.output.splitlines()[0].split()[-1] == "action"
    assert len(for_people.output.splitlines()) == len(table) + 1


def test_one_table_at_a_time() -> None:
    refused = CliRunner().invoke(check, ["--replies", "--faults"])
    assert refused.exit_code == 2
    assert "one at a time" in refused.output


def test_channels_are_shown() -> None:
    system = System("chat")
    news, _ = system.channel("news"), system.channel("room:*", pattern=True)

    @news.on
    async def hear(message: Broadcast) -> None: ...

    found = {each.what: each.detail for each in _declared(system)}
    assert found == {
        "channel news": "every process is told: 1 handler; what is missed is not read again",
        "channel room:*": "a pattern; only sent to from here",
    }
