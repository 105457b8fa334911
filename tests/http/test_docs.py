"""The documented numbers and names are the real ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trio

import penstock.http.app
from penstock.http.lifecycle import BUFFER
from penstock.http.settings import HttpSettings
from penstock.runtime.supervision import Journal

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "reference" / "http-api.md").read_text()


_HOW_TO = (_ROOT / "docs" / "how-to" / "publish-over-http.md").read_text()


def _sources() -> str:
    return "".join(path.read_text() for path in Path(penstock.http.app.__file__).parent.glob("*.py"))


def test_every_kind_of_problem_is_documented_and_no_other() -> None:
    listed = _PAGE.partition("| `urn:penstock:problem:` |")[2].partition("\n\n")[0]
    documented = {name for row in listed.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    raised = set(re.findall(r'Problem\(\s*\d{3},\s*"([a-z-]+)"', _sources())) | {"internal-error", "unavailable"}
    of_statuses = {"not-found", "method-not-allowed", "request-timeout", "request-entity-too-large"}
    assert documented == raised | of_statuses


def test_the_documented_limits_are_the_defaults() -> None:
    settings = HttpSettings()
    for name, shown in (
        ("body_limit", "10 MB"),
        ("max_items", "10,000"),
        ("live_clients", "100"),
        ("tail_clients", "20"),
        ("topic_clients", "100"),
        ("capture_body_limit", "8192"),
    ):
        assert f"`http.{name}` ({shown})" in _PAGE
    assert (settings.body_limit, settings.max_items) == (10_000_000, 10_000)
    assert (settings.live_clients, settings.tail_clients, settings.capture_body_limit) == (100, 20, 8192)
    assert settings.topic_clients == 100
    assert settings.bind == ("127.0.0.1:47170",)
    assert f"the last {Journal().recent.maxlen}\nevents, and {BUFFER:,} wait for a client" in _PAGE


async def test_the_program_of_the_how_to_publishes(serving: Any) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", _HOW_TO, re.DOTALL)
    async with serving() as server:
        space: dict[str, Any] = {}
        exec(program.replace("127.0.0.1:47170", f"127.0.0.1:{server.port}"), space)
        answer = await trio.to_thread.run_sync(space["publish"], "anything", "X", {"n": 1})
        ((stream, envelope),) = server.deployment.published
    assert (stream, envelope.data, str(envelope.event_id)) == ("anything", {"n": 1}, answer["eventId"])


def test_the_how_to_shows_the_script_that_the_browser_runs() -> None:
    script = (_ROOT / "tests" / "browser" / "live_shop" / "page" / "live.js").read_text()
    assert script in (_ROOT / "docs" / "how-to" / "own-routes.md").read_text()
