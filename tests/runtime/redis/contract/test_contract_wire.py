"""What is on the wire: pub/sub, transactions, logins, types of replies; without a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import RawClient, Server
    from trio.testing import MockClock


async def test_subscriptions_and_messages(raw: RawClient, server: Server, clock: MockClock | None) -> None:
    other = await server.dial()

    def heard(*message: Any) -> Any:
        return ("push", *message) if server.protocol == 3 else list(message)

    assert await raw.call("SUBSCRIBE", "a", "b") == heard(b"subscribe", b"a", 1)
    assert await raw.receive() == heard(b"subscribe", b"b", 2)
    assert await raw.call("PSUBSCRIBE", "a*") == heard(b"psubscribe", b"a*", 3)
    assert await raw.call("SSUBSCRIBE", "s") == heard(b"ssubscribe", b"s", 1)
    assert await other.call("PUBLISH", "a", "x") == 2
    assert await raw.receive() == heard(b"message", b"a", b"x")
    assert await raw.receive() == heard(b"pmessage", b"a*", b"a", b"x")
    assert await other.call("SPUBLISH", "s", "y") == 1
    assert await raw.receive() == heard(b"smessage", b"s", b"y")
    assert await other.call("PUBLISH", "nobody", "x") == 0
    assert sorted(await other.call("PUBSUB", "CHANNELS")) == [b"a", b"b"]
    assert await other.call("PUBSUB", "CHANNELS", "b*") == [b"b"]
    assert await other.call("PUBSUB", "NUMSUB", "a", "nobody") == [b"a", 1, b"nobody", 0]
    assert await other.call("PUBSUB", "NUMPAT") == 1
    assert await other.call("PUBSUB", "SHARDCHANNELS") == [b"s"]
    assert await other.call("PUBSUB", "SHARDNUMSUB", "s") == [b"s", 1]
    assert await raw.call("UNSUBSCRIBE", "a", "absent") == heard(b"unsubscribe", b"a", 2)
    assert await raw.receive() == heard(b"unsubscribe", b"absent", 2)
    assert await raw.call("PUNSUBSCRIBE") == heard(b"punsubscribe", b"a*", 1)
    assert await raw.call("PUNSUBSCRIBE") == heard(b"punsubscribe", None, 1)
    assert await raw.call("UNSUBSCRIBE") == heard(b"unsubscribe", b"b", 0)
    assert await raw.call("SUNSUBSCRIBE") == heard(b"sunsubscribe", b"s", 0)
    assert await raw.call("GET", "k") is None
    await other.aclose()


async def test_a_subscriber_may_run_commands_in_resp3_only(
    raw: RawClient, server: Server, clock: MockClock | None
) -> None:
    await raw.call("SUBSCRIBE", "a")
    if server.protocol == 2:
        assert await raw.call("PING") == [b"pong", b""]
        assert await raw.call("GET", "k") == (
            "ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this "
            "context"
        )
    else:
        assert await raw.call("PING") == "PONG" or b"PONG"
        first, second = await raw.call("PUBLISH", "a", "to myself"), await raw.receive()
        message = ("push", b"message", b"a", b"to myself")
        # From 7.2 on the reply comes first.
        assert [first, second] == ([1, message] if server.version >= (7, 2) else [message, 1])


async def test_a_closed_subscriber_hears_nothing(raw: RawClient, server: Server, clock: MockClock | None) -> None:
    other = await server.dial()
    await other.call("SUBSCRIBE", "a")
    await other.aclose()
    while await raw.call("PUBLISH", "a", "x"):
        pass
    assert await raw.call("PUBSUB", "CHANNELS") == []


async def test_watched_keys(raw: RawClient, server: Server, clock: MockClock | None) -> None:
    other = await server.dial()
    assert await raw.call("WATCH", "k") == b"OK"
    await other.call("SET", "k", "x")
    for words, reply in ((("MULTI",), b"OK"), (("SET", "k", "y"), b"QUEUED"), (("EXEC",), None)):
        assert await raw.call(*words) == reply
    await raw.call("WATCH", "k")
    await raw.call("UNWATCH")
    await other.call("SET", "k", "z")
    await raw.call("MULTI")
    assert await raw.call("GET", "k") == b"QUEUED"
    assert await raw.call("EXEC") == [b"z"]
    await other.aclose()


async def test_transactions_and_their_errors(raw: RawClient, server: Server, clock: MockClock | None) -> None:
    assert await raw.call("EXEC") == "ERR EXEC without MULTI"
    assert await raw.call("DISCARD") == "ERR DISCARD without MULTI"
    await raw.call("MULTI")
    assert (await raw.call("NO-SUCH")).startswith("ERR unknown command 'NO-SUCH'")
    assert await raw.call("SET", "k", "v") == b"QUEUED"
    assert await raw.call("EXEC") == "EXECABORT Transaction discarded because of previous errors."
    await raw.call("MULTI")
    await raw.call("SET", "k", "v")
    await raw.call("LPUSH", "k", "v")
    await raw.call("BLPOP", "absent", 0)
    await raw.call("XREAD", "BLOCK", 0, "STREAMS", "absent", "$")
    set_reply, error, *nothing = await raw.call("EXEC")
    assert (set_reply, str(error)) == (b"OK", "WRONGTYPE Operation against a key holding the wrong kind of value")
    assert nothing == [None, None]
    await raw.call("MULTI")
    await raw.call("SET", "k", "w")
    assert await raw.call("DISCARD") == b"OK"
    assert await raw.call("GET", "k") == b"v"


async def test_greetings_and_names(server: Server, clock: MockClock | None) -> None:
    client = await server.dial(greet=False)
    assert await client.call("HELLO", 4) == "NOPROTO unsupported protocol version"
    assert await client.call("HELLO", 2, "NO") == "ERR Syntax error in HELLO option 'NO'"
    assert await client.call("HELLO", 2, "AUTH", "nobody", "x") == (
        "WRONGPASS invalid username-password pair or user is disabled."
    )
    hello = await client.call("HELLO", 2, "SETNAME", "me")
    facts = dict(zip(hello[::2], hello[1::2], strict=True))
    assert (facts[b"proto"], facts[b"mode"], facts[b"role"]) == (2, b"standalone", b"master")
    assert (await client.call("HELLO", 3))[b"proto"] == 3
    assert await client.call("CLIENT", "GETNAME") == b"me"
    assert await client.call("CLIENT", "SETNAME", "you") == b"OK"
    assert (await client.call("CLIENT", "SETNAME", "a b")).startswith("ERR Client names cannot contain spaces")
    number = await client.call("CLIENT", "ID")
    info = dict(pair.split(b"=", 1) for pair in (await client.call("CLIENT", "INFO")).split())
    assert (info[b"id"], info[b"name"], info[b"resp"]) == (b"%d" % number, b"you", b"3")
    other = await server.dial()
    await other.call("SUBSCRIBE", "c")
    lines = (await client.call("CLIENT", "LIST", "TYPE", "pubsub")).splitlines()
    assert [b"sub=1" in line.split() for line in lines] == [True]
    assert await client.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
    assert await other.receive() == "end"
    assert await client.call("CLIENT", "KILL", "ID", number, "SKIPME", "no") == 1
    assert await client.receive() == "end"
    await other.aclose()
    await client.aclose()


async def test_auth_without_any_password(raw: RawClient, clock: MockClock | None) -> None:
    assert (await raw.call("AUTH", "x")).startswith("ERR AUTH <password> called without any password configured")
    assert await raw.call("SELECT", 99) == "ERR DB index is out of range"
    assert await raw.call("WAIT", 0, 0) == 0
    assert await raw.call("ROLE") == [b"master", 0, []] or (await raw.call("ROLE"))[0] == b"master"
    assert await raw.call("ASKING") == "ERR This instance has cluster support disabled"
    assert await raw.call("QUIT") == b"OK"
    assert await raw.receive() == "end"


@pytest.mark.parametrize(
    ("before", "words", "resp2", "resp3"),
    [
        ([], ["GET", "k"], b"$-1\r\n", b"_\r\n"),
        ([], ["BLPOP", "l", "0.001"], b"*-1\r\n", b"_\r\n"),
        ([], ["XREAD", "BLOCK", "1", "STREAMS", "s", "$"], b"*-1\r\n", b"_\r\n"),
        (["SADD", "u", "a"], ["SMEMBERS", "u"], b"*1\r\n$1\r\na\r\n", b"~1\r\n$1\r\na\r\n"),
        (["HSET", "h", "f", "v"], ["HGETALL", "h"], b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n", b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"),
        (["ZADD", "z", "2.5", "a"], ["ZSCORE", "z", "a"], b"$3\r\n2.5\r\n", b",2.5\r\n"),
        (["ZADD", "z", "3", "a"], ["ZINCRBY", "z", "1", "a"], b"$1\r\n4\r\n", b",4\r\n"),
        (
            ["ZADD", "z", "1", "a"],
            ["ZRANGE", "z", "0", "-1", "WITHSCORES"],
            b"*2\r\n$1\r\na\r\n$1\r\n1\r\n",
            b"*1\r\n*2\r\n$1\r\na\r\n,1\r\n",
        ),
        (
            ["XADD", "s", "1-0", "a", "b"],
            ["XREAD", "STREAMS", "s", "0"],
            b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            b"%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_types_of_replies(
    before: list[str], words: list[str], resp2: bytes, resp3: bytes, raw: RawClient, server: Server, clock: Any
) -> None:
    if before:
        await raw.call(*before)
    assert await raw.bytes_of(*words) == (resp3 if server.protocol == 3 else resp2)
