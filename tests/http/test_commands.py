"""The commands as a user runs them: processes of their own, against a running front end."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.producer import PublishFailed

_RUN = (
    "import sys\n"
    "from importlib import import_module\n"
    "from penstock.runtime import cli\n"
    "name = sys.argv.pop(1)\n"
    "cli._cli.add_command(getattr(import_module(f'penstock.http.commands.{name}'), name), name)\n"
    "cli.main([name, *sys.argv[1:]])\n"
)

ORDER = {"orderId": "o-1", "price": 9.5}


@event("PAID")
@frozen
class Paid:
    amount: Decimal


async def _run(name: str, *arguments: str, url: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _RUN, name, *arguments, *(["--url", url] if url else [])]
    done = await trio.run_process(command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def _url(server: Any) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_a_command_that_asks_a_running_system_does_not_wait_for_what_only_that_system_needs() -> None:
    asking = (
        "dead_letters",
        "entries",
        "entry_orders",
        "ledger",
        "publish",
        "queues",
        "replay",
        "retention",
        "streams",
        "tail",
    )
    program = (
        "import sys\n"
        f"import {', '.join(f'penstock.http.commands.{name}' for name in asking)}\n"
        "print(*sorted({'trio', 'redis', 'psycopg', 'quart', 'hypercorn', 'structlog'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# tree ----------------------------------------------------------------------------------------------------------------


async def test_tree_draws_every_child_and_the_gates(serving: Any) -> None:
    async with serving() as server:
        done = await _run("tree", url=_url(server))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["child", "state", "starts", "restarts", "note"]
    assert lines[1].split() == ["event-system", "running", "1", "0", "rest", "for", "one"]
    assert lines[3].startswith("│  ├─ redis-server")
    assert lines[3].endswith("pid 4711")
    assert any(line.startswith("╰─ http ") for line in lines)
    assert any(line.split()[:2] == ["redis", "open"] for line in lines)


async def test_tree_says_what_is_held_and_by_what(serving: Any) -> None:
    async with serving() as server:
        server.deployment.shut_redis()
        done = await _run("tree", url=_url(server))
    assert done.returncode == 0
    (held,) = [line for line in done.stdout.splitlines() if "listener-1" in line]
    assert "held by the gate redis: connection refused at 127.0.0.1:6379" in held
    assert "SHUT" in done.stdout


async def test_tree_as_json_is_what_the_api_says(serving: Any) -> None:
    async with serving() as server:
        done = await _run("tree", "--json", url=_url(server))
    assert json.loads(done.stdout)["tree"]["id"] == "event-system"


@pytest.mark.parametrize("name", ["tree", "publish", "tail"])
async def test_where_nothing_listens_there_is_one_line_and_exit_code_2(free_port: int, name: str) -> None:
    arguments = {"tree": [], "publish": ["orders", "--type", "X", "--data", "{}"], "tail": ["orders"]}[name]
    done = await _run(name, *arguments, url=f"http://127.0.0.1:{free_port}")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"http://127.0.0.1:{free_port}" in line
    assert "connection refused" in line
    assert "penstock run" in line


async def test_the_address_comes_from_the_settings(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        monkeypatch.setenv("PENSTOCK_HTTP_BIND", f"0.0.0.0:{server.port}")
        done = await _run("tree")
    assert done.returncode == 0, done.stderr


async def test_a_unix_socket_will_do(serving: Any, tmp_path: Path) -> None:
    async with serving(bind=(f"unix:{tmp_path}/http.sock", "127.0.0.1:0")):
        done = await _run("tree", url=f"unix:{tmp_path}/http.sock")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://", "http://h:port"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    done = await _run("tree", url=url)
    assert done.returncode == 2
    assert "--url" in done.stderr


# publish -------------------------------------------------------------------------------------------------------------


async def test_one_event_is_published_and_its_ids_printed(serving: Any) -> None:
    event_id = str(uuid4())
    async with serving() as server:
        arguments = ("order-events", "--type", "ORDER_PLACED", "--data", json.dumps(ORDER))
        done = await _run("publish", *arguments, "--key", "k", "--event-id", event_id, url=_url(server))
        ((stream, envelope),) = server.deployment.published
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{event_id}  1700000000000-1\n"
    assert (stream, envelope.key, envelope.data) == ("order-events", "k", ORDER)


async def test_many_come_from_a_file_or_standard_input(serving: Any, tmp_path: Path) -> None:
    events = [{"eventType": "X", "data": {"n": n}} for n in range(1203)]
    text = "".join(json.dumps(event) + "\n" for event in events).encode()
    path = trio.Path(tmp_path / "events.ndjson")
    await path.write_bytes(text)
    async with serving() as server:
        for arguments, stdin in ((["anything", str(path)], b""), (["anything", "-"], text.rstrip())):
            server.deployment.published.clear()
            done = await _run("publish", *arguments, "--json", url=_url(server), stdin=stdin)
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.splitlines()) == 1203
            assert [envelope.data["n"] for _, envelope in server.deployment.published] == list(range(1203))


async def test_with_a_type_each_line_is_the_data_alone(serving: Any) -> None:
    async with serving() as server:
        done = await _run("publish", "anything", "-", "--type", "X", url=_url(server), stdin=b'{"a":1}\n\n{"a":2}\n')
        assert [envelope.data for _, envelope in server.deployment.published] == [{"a": 1}, {"a": 2}]
    assert done.returncode == 0, done.stderr


async def test_bad_lines_are_named_the_others_published_and_the_exit_code_is_1(serving: Any) -> None:
    lines = [
        b'{"eventType":"ORDER_PLACED","data":{"orderId":"a","price":1}}',
        b'{"eventType":"ORDER_PLACED","data":',
        b"",
        b'{"eventType":"NOPE","data":{}}',
    ]
    async with serving() as server:
        done = await _run("publish", "order-events", "-", url=_url(server), stdin=b"\n".join(lines))
        assert len(server.deployment.published) == 1
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0].startswith("line 2: malformed JSON")
    assert said[1].startswith("line 4: eventType: ")
    assert said[2] == "penstock: 2 of 3 events were not published"


async def test_numbers_go_out_with_the_digits_that_they_are_written_with(serving: Any) -> None:
    """A float would round them, and the server, which refuses what JSON does not keep, could not know."""
    lines = b"".join(
        b'{"eventType":"PAID","data":{"amount":%s}}\n' % number for number in (b"12345678901234567.89", b"9.50", b"1e2")
    )
    async with serving(lambda made: made.system.stream("payments", events=[Paid])) as server:
        done = await _run("publish", "payments", "-", url=_url(server), stdin=lines)
        assert [envelope.data["amount"] for _, envelope in server.deployment.published] == [9.5, 100.0]
        one = await _run(
            "publish", "payments", "--type", "PAID", "--data", '{"amount": 0.1234567890123456789}', url=_url(server)
        )
    assert done.stderr.splitlines()[0] == (
        "line 1: data.amount: has more digits than a JSON number keeps; give it as a string"
    )
    assert "more digits" in one.stderr
    assert (done.returncode, one.returncode) == (1, 1)


async def test_what_is_no_utf_8_is_refused_and_never_replaced(serving: Any) -> None:
    lines = (
        '{"eventType":"X","data":{"name":"café"}}\n'.encode("latin-1") + '{"eventType":"X","data":{"주":1}}'.encode()
    )
    arguments = ("anything", "--type", "X", "--data", '{"name":"caf\udce9"}')
    async with serving() as server:
        done = await _run("publish", "anything", "-", url=_url(server), stdin=lines)
        one = await _run("publish", *arguments, url=_url(server))
        assert [envelope.data for _, envelope in server.deployment.published] == [{"주": 1}]
    assert done.stderr.splitlines()[0] == "line 1: byte 37 is not UTF-8"
    assert one.stderr.splitlines()[0] == "line 1: byte 13 is not UTF-8"


async def test_an_event_of_a_file_may_have_its_id_and_options_come_before_it(serving: Any) -> None:
    own = str(uuid4())
    lines = [
        b'{"eventType":"X","data":{},"eventId":"%s","key":"own"}' % own.upper().encode(),
        b' { "eventType":"X",\t"data":{},"eventId":null }\r',
        b'{"eventType":"X","data":{},"eventId":"{%s}"}' % own.encode(),
        b"{}",
    ]
    async with serving() as server:
        done = await _run("publish", "anything", "-", "--key", "k", url=_url(server), stdin=b"\n".join(lines))
        published = [envelope for _, envelope in server.deployment.published]
    assert [envelope.key for envelope in published] == ["k", "k"]
    assert done.stdout.split()[::2] == [str(envelope.event_id) for envelope in published]
    assert str(published[0].event_id) == own
    said = done.stderr.splitlines()
    assert said[0] == "line 3: eventId: must be a UUID, written with dashes"
    assert said[1].startswith("line 4: eventType: ")


async def test_the_data_of_one_event_may_stand_on_several_lines(serving: Any) -> None:
    async with serving() as server:
        done = await _run("publish", "anything", "--type", "X", "--data", '{\n\t"a": "b"\r\n}\n', url=_url(server))
        assert [envelope.data for _, envelope in server.deployment.published] == [{"a": "b"}]
    assert done.returncode == 0, done.stderr


async def test_an_outage_is_waited_for_with_the_same_ids(serving: Any) -> None:
    tried: list[UUID] = []

    def fail_twice(envelope: Any) -> PublishFailed | None:
        tried.append(envelope.event_id)
        if envelope.data["n"] == 1 and tried.count(envelope.event_id) <= 2:
            return PublishFailed(envelope.event_id, "away", retry_after=0.05, outcome_unknown=True)
        return None

    lines = b"".join(b'{"eventType":"X","data":{"n":%d}}\n' % n for n in range(3))
    async with serving() as server:
        server.deployment.failure = fail_twice
        done = await _run("publish", "anything", "-", url=_url(server), stdin=lines)
        assert sorted(envelope.data["n"] for _, envelope in server.deployment.published) == [0, 1, 2]
    assert done.returncode == 0, done.stderr
    assert len(set(tried)) == 3
    assert "penstock: waiting: " in done.stderr
    assert len(done.stdout.splitlines()) == 3


async def test_an_outage_that_does_not_end_is_given_up(serving: Any) -> None:
    async with serving() as server:
        server.deployment.shut_redis()
        arguments = ("anything", "--type", "X", "--data", "{}", "--retry-for", "0.3")
        done = await _run("publish", *arguments, url=_url(server))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "gave up after 0.3 s" in done.stderr
    assert "connection refused at 127.0.0.1:6379" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["orders"], "--data or a FILE", 2),
        (["orders", "--data", "{}"], "--type", 2),
        (["orders", "-", "--data", "{}", "--type", "X"], "--data or a FILE", 2),
        (["orders", "-", "--event-id", "x"], "--event-id", 2),
        (["nope", "--type", "X", "--data", "{}"], "no stream 'nope'; the streams are: EVENT_STREAM", 1),
        (["anything", "--type", "X", "--data", "{"], "malformed JSON", 1),
        (["anything", "-"], "no events", 1),
    ],
)
async def test_what_cannot_be_published_is_said(serving: Any, arguments: list[str], says: str, code: int) -> None:
    async with serving() as server:
        done = await _run("publish", *arguments, url=_url(server))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# tail ----------------------------------------------------------------------------------------------------------------


async def test_tail_shows_entries_until_there_are_enough(serving: Any) -> None:
    async with serving() as server:
        for n in range(3):
            body = json.dumps({"eventType": "X", "data": {"주문": n}, "key": "k"}).encode()
            await server.request("POST", "/api/v1/streams/anything/events", body, {"Content-Type": "application/json"})
        done = await _run("tail", "anything", "--after", "0", "--count", "2", url=_url(server))
        as_json = await _run("tail", "anything", "--after", "0", "--count", "1", "--json", url=_url(server))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("1700000000000-1  ")
    assert first.endswith('  X  key=k  {"주문": 0}')
    assert second.startswith("1700000000000-2  ")
    assert json.loads(as_json.stdout)["data"] == {"주문": 0}


async def test_nothing_in_an_entry_forges_a_line_of_tail_or_reaches_the_terminal_as_a_code(serving: Any) -> None:
    key, data = "\x1b[2J\n2-0  now  PAID  forged", {"a": "\x9b2J\x1b"}
    async with serving() as server:
        body = json.dumps({"eventType": "X\r\x9b2J", "data": data, "key": key}).encode()
        await _post(body, server)
        done = await _run("tail", "anything", "--after", "0", "--count", "1", url=_url(server))
        as_json = await _run("tail", "anything", "--after", "0", "--count", "1", "--json", url=_url(server))
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n").isprintable()
    assert r"  X\r\x9b2J  key=\x1b[2J\n2-0  now  PAID  forged  " in done.stdout
    assert as_json.stdout.removesuffix("\n").isprintable()
    entry = json.loads(as_json.stdout)
    assert (entry["key"], entry["data"]) == (key, data)


async def test_tail_goes_on_behind_the_last_entry_after_a_restart(serving: Any, free_port: int) -> None:
    bind = f"127.0.0.1:{free_port}"
    body = json.dumps([{"eventType": "X", "data": {"n": n}} for n in range(2)]).encode()
    send = partial(_post, body)
    command = [
        sys.executable,
        "-c",
        _RUN,
        "tail",
        "anything",
        "--after",
        "0",
        "--count",
        "3",
        "--url",
        f"http://{bind}",
    ]
    async with trio.open_nursery() as nursery:
        async with serving(bind=bind) as server:
            await send(server)
            process = await nursery.start(
                partial(trio.run_process, command, capture_stdout=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
            seen = b""
            with trio.fail_after(15):
                while seen.count(b"\n") < 2:
                    seen += await process.stdout.receive_some(4096)
        async with serving(bind=bind) as server:
            await send(server)
            await send(server)
            with trio.fail_after(15):
                while seen.count(b"\n") < 3:
                    seen += await process.stdout.receive_some(4096)
    ids = [line.split()[0] for line in seen.decode().splitlines()]
    assert ids == ["1700000000000-1", "1700000000000-2", "1700000000000-3"]


async def _post(body: bytes, server: Any) -> None:
    await server.request("POST", "/api/v1/streams/anything/events", body, {"Content-Type": "application/json"})


async def test_a_tail_of_an_unknown_stream_is_said_once(serving: Any) -> None:
    async with serving() as server:
        done = await _run("tail", "nope", url=_url(server))
    assert done.returncode == 1
    assert done.stderr.count("no stream 'nope'") == 1
