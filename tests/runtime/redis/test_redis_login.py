"""How the link introduces itself to a real server: TLS with certificates of both sides, ACL users, database, name."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import redis.exceptions
import trio
import trio.lowlevel
from attrs import frozen
from redis.credentials import CredentialProvider

from penstock.runtime.redis import Kind, NotSent, Redis, RedisOptions, classify
from penstock.runtime.testing.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ValkeyServer


@frozen
class Certificates:
    """PEM files: an authority, a server's and a client's certificate of it, and what does not belong."""

    directory: Path

    def __getattr__(self, name: str) -> str:
        return str(self.directory / f"{name}.pem")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    made = Certificates(tmp_path_factory.mktemp("tls"))
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for authority in ("ca", "stranger"):
        _openssl(
            *["req", "-x509", *key, "-subj", f"/CN={authority}"],
            *["-keyout", getattr(made, f"{authority}_key"), "-out", getattr(made, authority)],
        )
    for name in ("server", "client"):
        _openssl(
            *["req", "-x509", *key, "-subj", f"/CN={name}", "-CA", made.ca, "-CAkey", made.ca_key],
            *["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"],
            *["-keyout", getattr(made, f"{name}_key"), "-out", getattr(made, name)],
        )
    _openssl("pkey", "-in", made.client_key, "-aes256", "-passout", "pass:door", "-out", made.locked_key)
    return made


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates) -> Iterator[int]:
    """Debian's Redis, which speaks TLS itself, and wants a certificate from its clients."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs a redis-server with TLS (the embedded Valkey is built without)")
    port, directory = free_port(), tempfile.mkdtemp(prefix="pt-")
    tls = ["--tls-port", str(port), "--tls-cert-file", certificates.server, "--tls-key-file", certificates.server_key]
    order = [program, "--port", "0", *tls, "--tls-ca-cert-file", certificates.ca, "--dir", directory, "--save", ""]
    process = subprocess.Popen([*order, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not _listens(port):
            if process.poll() is not None:
                pytest.skip("this redis-server has no TLS")
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.01)  # another process: there is no event to wait for
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tls_url(port: int, host: str = "localhost", **query: str) -> str:
    options = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    return f"rediss://{host}:{port}/3?{options}"


def both_sides(certificates: Certificates) -> dict[str, str]:
    return {
        "ssl_ca_certs": certificates.ca,
        "ssl_certfile": certificates.client,
        "ssl_keyfile": certificates.client_key,
    }


async def refusal_of(url: str) -> NotSent:
    async with Redis(RedisOptions.from_url(url, retry_for=0)) as client:
        with pytest.raises(NotSent) as caught:
            await client.ping()
        return caught.value


@pytest.mark.parametrize("protocol", [2, 3])
async def test_tls_with_certificates_of_both_sides(tls_port: int, certificates: Certificates, protocol: int) -> None:
    """Name, database, blocking commands and a large reply, over TLS."""
    url = tls_url(tls_port, **both_sides(certificates), ssl_min_version="1.3", client_name="mill")
    async with Redis(RedisOptions.from_url(url, protocol=protocol)) as client:
        information: dict[str, Any] = await client.client_info()
        assert (information["name"], information["db"], information["resp"]) == ("mill", 3, str(protocol))
        assert await client.xread({"s": "$"}, block=10) == []
        await client.set("big", "x" * 300_000)
        assert len(await client.get("big") or b"") == 300_000


async def test_an_encrypted_key_and_an_authority_as_text(tls_port: int, certificates: Certificates) -> None:
    query = both_sides(certificates) | {"ssl_keyfile": certificates.locked_key, "ssl_password": "door"}
    query["ssl_ca_data"] = await trio.Path(query.pop("ssl_ca_certs")).read_text()
    async with Redis(RedisOptions.from_url(tls_url(tls_port, **query))) as client:
        assert await client.ping()


def test_an_encrypted_key_without_its_password_is_an_error_at_once(certificates: Certificates) -> None:
    """And not a question on the terminal."""
    query = both_sides(certificates) | {"ssl_keyfile": certificates.locked_key}
    with pytest.raises(ssl.SSLError):
        Redis(RedisOptions.from_url(tls_url(1, **query)))


async def test_a_server_of_an_unknown_authority_is_rejected(tls_port: int, certificates: Certificates) -> None:
    query = both_sides(certificates) | {"ssl_ca_certs": certificates.stranger}
    assert "CERTIFICATE_VERIFY_FAILED" in str(await refusal_of(tls_url(tls_port, **query)))


async def test_a_certificate_for_another_name_is_rejected_unless_the_name_does_not_matter(
    tls_port: int, certificates: Certificates
) -> None:
    query = both_sides(certificates)
    assert "CERTIFICATE_VERIFY_FAILED" in str(await refusal_of(tls_url(tls_port, "127.0.0.1", **query)))
    for lax in ({"ssl_check_hostname": "false"}, {"ssl_cert_reqs": "none", "ssl_ca_certs": certificates.stranger}):
        async with Redis(RedisOptions.from_url(tls_url(tls_port, "127.0.0.1", **(query | lax)))) as client:
            assert await client.ping()


async def test_without_a_certificate_of_ones_own_the_server_hangs_up(tls_port: int, certificates: Certificates) -> None:
    """Its reason may or may not come through: it resets the connection right behind it."""
    text = str(await refusal_of(tls_url(tls_port, ssl_ca_certs=certificates.ca)))
    assert any(reason in text for reason in ("CERTIFICATE_REQUIRED", "reset by peer", "closed the connection"))


async def test_tls_to_a_port_without_it_is_told_from_a_server_that_is_away(
    make_valkey: Callable[..., ValkeyServer],
) -> None:
    """The server takes the beginning of the handshake for that of a command, and waits for its end."""
    port = free_port()
    make_valkey("--port", str(port), "--bind", "127.0.0.1")
    text = str(await refusal_of(tls_url(port, "127.0.0.1", connect_timeout="0.5")))
    assert text.endswith("no connection within 0.5 s: TCP is connected, but TLS gets no answer (is this a TLS port?)")


async def test_no_tls_to_a_port_that_wants_it_is_asked_about(tls_port: int) -> None:
    text = str(await refusal_of(f"redis://127.0.0.1:{tls_port}"))
    assert text.endswith(" (is this a Redis server's port, and without TLS?)")


@pytest.mark.parametrize(
    ("scheme", "answer", "question"),
    [
        ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "(is this a Redis server's port, and without TLS?)"),
        ("redis", b"", "the server closed the connection (is this a Redis server's port, and without TLS?)"),
        ("rediss", b"HTTP/1.1 400 Bad Request\r\n\r\n", "(is this a TLS port?)"),
        ("rediss", b"", "(is this a TLS port?)"),
    ],
)
async def test_a_port_of_something_else_is_asked_about(scheme: str, answer: bytes, question: str) -> None:
    async def answer_once(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), answer_once, 0)
        port = listener.socket.getsockname()[1]
        assert str(await refusal_of(f"{scheme}://127.0.0.1:{port}")).endswith(question)
        nursery.cancel_scope.cancel()


async def test_a_wrong_certificate_is_not_tried_again(tls_port: int, certificates: Certificates) -> None:
    query = both_sides(certificates) | {"ssl_ca_certs": certificates.stranger}
    troubles: list[Exception] = []
    async with Redis(RedisOptions.from_url(tls_url(tls_port, **query)), on_trouble=troubles.append) as client:
        with pytest.raises(NotSent):
            await client.ping()
    assert len(troubles) == 1


@pytest.fixture
async def users(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    """An administrator; there is a user `miller`, who may do little."""
    async with Redis(valkey.options) as admin:
        rights = ["~mill:*", "+get", "+set", "+hello", "+select", "+xread", "+client|setname"]
        await admin.execute_command("ACL SETUSER", "miller", "on", ">grist & flour", *rights)
        await admin.acl_log_reset()
        yield admin
        await admin.acl_deluser("miller")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_acl_user_with_a_password_a_name_and_a_database(
    valkey: ValkeyServer, users: Redis, protocol: int
) -> None:
    """A user of few rights will do: the handshake asks for nothing that is not needed, and the ACL log stays empty."""
    url = f"unix://miller:{quote('grist & flour')}@{valkey.path}?db=2&client_name=mill"
    async with Redis(RedisOptions.from_url(url, protocol=protocol)) as client:
        assert await client.set("mill:k", "v")
        assert await client.get("mill:k") == b"v"
        assert await client.xread({"mill:s": "$"}, block=1) == []
        mine = [each for each in await users.client_list() if each["name"] == "mill"]
        assert {(each["user"], each["db"], each["resp"]) for each in mine} == {("miller", "2", str(protocol))}
        assert await users.acl_log() == []
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.get("other")
    async with Redis(RedisOptions.from_url(valkey.url, db=2)) as client:
        assert await client.get("mill:k") == b"v"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_wrong_password_is_told_and_not_tried_again(valkey: ValkeyServer, users: Redis, protocol: int) -> None:
    """The server would say the same, and might lock the user."""
    url = f"unix://miller:chaff@{valkey.path}"
    async with Redis(RedisOptions.from_url(url, protocol=protocol)) as client:
        with pytest.raises(NotSent, match="WRONGPASS") as caught:
            await client.get("mill:k")
    assert classify(caught.value).kind is Kind.CONFIG
    assert "chaff" not in repr(caught.value)
    assert sum(int(entry["count"]) for entry in await users.acl_log()) == 1


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_default_user_has_a_password_without_a_name(
    make_valkey: Callable[..., ValkeyServer], protocol: int
) -> None:
    server = make_valkey("--requirepass", "grist")
    async with Redis(RedisOptions.from_url(f"unix://:grist@{server.path}", protocol=protocol)) as client:
        assert await client.ping()
    async with Redis(RedisOptions.from_url(server.url, protocol=protocol)) as client:
        with pytest.raises(redis.exceptions.ConnectionError, match="NOAUTH"):
            await client.ping()


class Turnstile(CredentialProvider):
    """Tokens: one that fails, one that is wrong, then good ones."""

    def __init__(self) -> None:
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        raise NotImplementedError

    async def get_credentials_async(self) -> tuple[str, str]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.asked == 1:
            raise OSError("the token office is closed: secret")
        return "miller", "chaff" if self.asked == 2 else "grist & flour"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_credentials_are_asked_for_at_every_connect(valkey: ValkeyServer, users: Redis, protocol: int) -> None:
    """An office that is closed for a moment is asked again; its reasons stay secret."""
    office = Turnstile()
    options = RedisOptions.from_url(valkey.url, protocol=protocol, credential_provider=office)
    async with Redis(options) as client:
        with pytest.raises(NotSent, match="WRONGPASS"):
            await client.set("mill:k", "v")
        last = client.statistics().last_error
        assert last is not None
        assert "secret" not in str(last)
        assert office.asked == 2
        assert await client.set("mill:k", "v")
        async with client.dedicated() as connection:
            assert await connection.get("mill:k") == b"v"
        assert office.asked == 4


async def test_a_database_that_does_not_exist_is_told(valkey: ValkeyServer) -> None:
    async with Redis(RedisOptions.from_url(valkey.url, db=99, retry_for=0)) as client:
        with pytest.raises(NotSent, match="out of range"):
            await client.ping()


async def test_resp2_serves_what_does_not_know_hello(make_valkey: Callable[..., ValkeyServer]) -> None:
    """A server without HELLO: RESP3 fails and says why; RESP2 does not ask, and blocks, bursts and scripts as usual."""
    server = make_valkey("--rename-command", "HELLO", "")
    async with Redis(RedisOptions.from_url(server.url)) as client:
        with pytest.raises(NotSent, match="unknown command 'HELLO'"):
            await client.ping()
    async with Redis(RedisOptions.from_url(f"{server.url}?protocol=2")) as client:
        entry = await client.xadd("s", {"a": 1})
        assert await client.xread({"s": "0"}, block=10) == [[b"s", [(entry, {b"a": b"1"})]]]
        pipeline = client.pipeline()
        pipeline.hset("h", mapping={"a": 1})
        pipeline.hgetall("h")
        assert await pipeline.execute() == [1, {b"a": b"1"}]
        assert await client.register_script("return {1, 'x'}")() == [1, b"x"]


async def test_a_server_that_loads_is_waited_for(make_valkey: Callable[..., ValkeyServer]) -> None:
    """A restarted server reads its data for a second; commands given meanwhile succeed without anybody's doing."""
    server = make_valkey("--appendonly", "yes", "--enable-debug-command", "yes", "--key-load-delay", "10000")
    async with Redis(RedisOptions.from_url(server.url, retry_for=20)) as client:
        for number in range(100):
            await client.set(f"k{number}", "v")
        await trio.to_thread.run_sync(server.kill)
        await trio.to_thread.run_sync(server.start)
        with trio.fail_after(20):
            assert await client.incr("n") == 1
        assert await client.get("k99") == b"v"


async def test_a_stopped_server_is_waited_for_by_reads_only(valkey: ValkeyServer) -> None:
    """Frozen for longer than `response_timeout`: the read gets its answer afterwards, the write its error."""
    options = RedisOptions.from_url(valkey.url, response_timeout=0.3, stall_after=0.1, retry_for=10)
    outcomes: dict[str, object] = {}

    async def run(name: str, command: Any) -> None:
        try:
            outcomes[name] = await command
        except redis.exceptions.RedisError as error:
            outcomes[name] = type(error).__name__

    async with Redis(valkey.options) as other:
        await other.set("k", "v")
    async with Redis(options) as client:
        assert await client.get("k") == b"v"
        valkey.signal(signal.SIGSTOP)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "read", client.get("k"))
                nursery.start_soon(run, "write", client.incr("n"))
                with trio.fail_after(20):
                    while "write" not in outcomes:
                        await trio.sleep(0.01)
                valkey.signal(signal.SIGCONT)
        finally:
            valkey.signal(signal.SIGCONT)
    assert outcomes == {"read": b"v", "write": "OutcomeUnknown"}
