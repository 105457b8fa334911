"""A request names a host that we answer for: DNS rebinding lets no page of another site read what we serve."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from penstock.http.front_end import front_end
from penstock.http.hosts import AllowedHosts
from penstock.http.pages import pages
from penstock.http.replies import json_reply
from penstock.http.routes import routes
from penstock.http.running import RunningSystem
from penstock.http.settings import HttpSettings
from penstock.http.topics import topic

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from fake_deployment import FakeDeployment
from websocket_client import Client, Refused, connect

LOOPBACK = ("127.0.0.1:47170",)
OPEN = ("0.0.0.0:47170",)


def allowed(names: list[str] | None = None, binds: tuple[str, ...] = LOOPBACK) -> AllowedHosts:
    settings = HttpSettings(bind=binds, allowed_hosts=names)
    return AllowedHosts.of(settings.allowed_hosts, settings.bind)


OURS = ["localhost", "LocalHost:80", "localhost.", "app.localhost:1", "127.0.0.1", "127.9.9.9:47170", "[::1]:47170"]
OTHERS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.7", "[fe80::1]", "notlocalhost"]
NONE = ["", ":80", "a:b", "localhost:x", "localhost@evil.example", "evil.example:1/localhost", "[::1", "\xff", None]


@pytest.mark.parametrize("binds", [LOOPBACK, ("[::1]:0", "localhost:0", "unix:/run/p"), ("127.0.0.2:0",)])
def test_on_loopback_only_our_own_names_are_accepted(binds: tuple[str, ...]) -> None:
    hosts = allowed(binds=binds)
    assert [host for host in OURS if not hosts.accept(host, "127.0.0.1")] == []
    assert [host for host in (*OTHERS, *NONE) if hosts.accept(host, "127.0.0.1")] == []


@pytest.mark.parametrize(
    "binds", [OPEN, ("[::]:0",), ("10.0.0.7:0",), (*LOOPBACK, "10.0.0.7:0"), ("fd://3",), ("a:1",)]
)
def test_elsewhere_any_host_is_accepted_unless_the_setting_says_which(binds: tuple[str, ...]) -> None:
    assert all(allowed(binds=binds).accept(host, "10.0.0.7") for host in (*OURS, *OTHERS, *NONE))
    hosts = allowed(["shop.example"], binds)
    assert hosts.accept("SHOP.example.:443", "10.0.0.7")
    assert [host for host in OURS if not hosts.accept(host, "10.0.0.7")] == []
    assert [host for host in (*OTHERS, *NONE) if hosts.accept(host, "10.0.0.9")] == []


def test_the_address_that_the_connection_came_to_is_accepted_for_probes_ask_by_it() -> None:
    hosts = allowed(["shop.example"], OPEN)
    assert hosts.accept("10.0.0.7:47170", "10.0.0.7")
    assert hosts.accept("10.0.0.7", "::ffff:10.0.0.7")
    assert hosts.accept("[fd00:0::7]", "fd00::7")
    assert not hosts.accept("10.0.0.8", "10.0.0.7")


def test_a_name_that_is_listened_on_is_accepted_beside_those_that_are_set() -> None:
    hosts = allowed(["shop.example"], ("Inner.host:47170", "0.0.0.0:1", "unix:/x"))
    assert hosts.accept("inner.host:47170", "10.0.0.7")
    assert not hosts.accept("0.0.0.0", "10.0.0.7")
    assert not hosts.accept("/x", "10.0.0.7")


def test_a_leading_dot_stands_for_a_domain_and_all_below_it() -> None:
    hosts = allowed([".Example.com", "10.1.2.3", "[fd00::1]"])
    for host in ("example.com", "a.example.com:8", "a.b.example.com.", "10.1.2.3:1", "[fd00:0::1]:2"):
        assert hosts.accept(host, "127.0.0.1")
    for host in ("badexample.com", "example.com.evil", "example.org", "com", "fd00::1"):
        assert not hosts.accept(host, "127.0.0.1")
    assert allowed(["*"]).accept("evil.example", "127.0.0.1")


def test_over_a_unix_socket_any_host_is_accepted_unless_the_setting_says_which() -> None:
    assert allowed(binds=("unix:/run/p",)).accept("whatever", None)
    assert allowed(["shop.example"], ("unix:/run/p",)).accept("localhost", None)
    assert not allowed(["shop.example"], ("unix:/run/p",)).accept("whatever", None)


@pytest.mark.parametrize("name", ["", "http://a", "a:80", "a b", "a/b", "*a", "[::1]:80", "-a", "a..b"])
def test_what_is_no_name_of_a_host_is_refused_as_a_setting(name: str) -> None:
    with pytest.raises(ValueError, match="must hold names of hosts"):
        HttpSettings(allowed_hosts=[name])


def test_the_other_way_of_writing_a_domain_is_told_of() -> None:
    with pytest.raises(ValueError, match=r'must have "\.example\.com" in the place'):
        HttpSettings(allowed_hosts=["*.example.com"])
    assert HttpSettings(allowed_hosts="a.example").allowed_hosts == ("a.example",)


# Over a real front end


OURS_AND_OTHERS = [
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/nowhere",
    "/own",
    "/dashboard",
    "/dashboard/index.html",
    "/topic",  # a plain request to where a WebSocket is
    "/api/v1/live",
    "/api/v1/tree/events",
    "/api/v1/streams/anything/tail",
]


def own_parts(folder: Path, deployment: Any) -> None:
    """Give the system a route, a page and a topic of its own."""
    pages(deployment.system, "/dashboard", folder)

    async def first(_: RunningSystem) -> Any:
        return 1

    topic(deployment.system, "/topic", channel="news", first=first)

    @routes(deployment.system)
    def own(_: RunningSystem) -> Blueprint:
        made = Blueprint("own", __name__)

        @made.get("/own")
        async def get() -> TrioResponse:
            return json_reply({})

        return made


async def test_every_route_refuses_another_host_and_says_which_setting_to_change(serving: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>secret")
    async with serving(prepare=partial(own_parts, tmp_path)) as server:
        for path in OURS_AND_OTHERS:
            status, headers, body = await server.request("GET", path, headers={"Host": "evil.example:47170"})
            assert (path, status, headers["Content-Type"]) == (path, 421, "application/problem+json")
            problem = json.loads(body)
            assert problem["type"] == "urn:penstock:problem:misdirected-request"
            assert "'evil.example:47170'" in problem["detail"]
            assert "http.allowed_hosts" in problem["detail"]
        event = json.dumps({"eventType": "X", "data": {}}).encode()
        post = {"Host": "evil.example", "Content-Type": "application/json"}
        status, _, _ = await server.request("POST", "/api/v1/streams/anything/events", event, post)
        assert (status, server.deployment.published) == (421, [])
        for path in ("/topic", "/nowhere"):
            with pytest.raises(Refused) as refused:
                async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                    await Client(stream).shake_hands(path, "evil.example", {"Origin": "http://evil.example"})
            assert refused.value.status == 421

        # Under its own names, and also where a page of its own opens the WebSocket, all is as it was.
        for host in ("localhost", f"127.0.0.1:{server.port}"):
            for path in ("/healthz", "/own", "/dashboard/index.html"):
                status, _, _ = await server.request("GET", path, headers={"Host": host})
                assert (host, path, status) == (host, path, 200)
        async with connect(server.port, "/topic", {"Origin": f"http://127.0.0.1:{server.port}"}) as client:
            assert await client.json() == 1
        # Who says nothing of a host is no browser, and no host of ours.
        stream = await server.raw(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 421 " in bytes(await stream.receive_some())


async def test_the_setting_opens_it_to_a_proxy_that_passes_on_the_host(serving: Any) -> None:
    async with serving(allowed_hosts=[".example.com"]) as server:
        for host, expected in (("shop.example.com", 200), ("evil.example", 421)):
            status, _, _ = await server.request("GET", "/healthz", headers={"Host": host})
            assert status == expected
        # What a client may write into a header of its own proves nothing.
        forged = {"Host": "evil.example", "X-Forwarded-Host": "shop.example.com", "Forwarded": "host=shop.example.com"}
        assert (await server.request("GET", "/healthz", headers=forged))[0] == 421


async def test_over_a_unix_socket_any_host_is_served(tmp_path: Path) -> None:
    settings = HttpSettings(bind=f"unix:{tmp_path}/s")
    deployment = FakeDeployment(front_ends=lambda made: [front_end(made, settings)])
    async with deployment.running(), await trio.open_unix_socket(tmp_path / "s") as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: penstock\r\n\r\n")
        assert b" 200 " in bytes(await stream.receive_some())
