"""Settings that cannot work end the command at once: exit code 2, and one line that names the key or the address."""

from __future__ import annotations

from pathlib import Path

import pytest
from installation import Installation, free_port


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"PENSTOCK_REDIS_ULR": "redis://127.0.0.1"}, "PENSTOCK_REDIS_ULR"),
        ({"PENSTOCK_RETENTION_DAYS": "soon"}, "PENSTOCK_RETENTION_DAYS"),
        ({"PENSTOCK_ZONE": "Asia/Soul"}, "PENSTOCK_ZONE"),
        ({"PENSTOCK_REDIS_URL": "redis://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"PENSTOCK_POSTGRES_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, "127.0.0.1:1"),
        ({"PENSTOCK_REDIS_URL": "http://127.0.0.1"}, "PENSTOCK_REDIS_URL"),
        (
            {"PENSTOCK_REDIS_URL": "redis+cluster://u:hunter2@127.0.0.1:1,127.0.0.1:2"},
            "2 nodes (127.0.0.1:1, 127.0.0.1:2): each refuses connections",
        ),
        (
            {"PENSTOCK_REDIS_URL": "redis+cluster://127.0.0.1:7001/3"},
            "redis.url: Redis URL: a cluster has database 0 only",
        ),
        ({"PENSTOCK_REDIS_URL": "redis+sentinel://127.0.0.1:26379"}, "redis.url: Redis URL: the path must begin with"),
        ({"PENSTOCK_SYSTEM": "nowhere:system"}, "there is no module 'nowhere'"),
        ({"PENSTOCK_REDIS_URL": "redis+sentinel://:hunter2@127.0.0.1:1/mill"}, "127.0.0.1:1"),
    ],
)
def test_one_line_and_exit_code_2(place: Path, environment: dict[str, str], named: str) -> None:
    ended = Installation(place, environment={"PENSTOCK_START_WAIT_FOR_SERVERS": "0", **environment}).command("run")
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert named in line
    assert "hunter2" not in ended.stderr + ended.stdout


def test_an_unknown_key_in_the_file_is_named_with_its_place(place: Path) -> None:
    (place / "penstock.toml").write_text("[retention]\ndayz = 3\n")
    ended = Installation(place).command("run")
    assert ended.returncode == 2
    assert "dayz" in ended.stderr
    assert "days" in ended.stderr


def test_a_handler_that_is_not_there_is_named_with_its_group(place: Path) -> None:
    (place / "penstock.toml").write_text('[streams.orders.groups.payment.handlers]\nPLACED = "shop.py:pay"\n')
    for command in ("run", "simulate"):
        ended = Installation(place).command(command)
        assert ended.returncode == 2, command
        (line,) = ended.stderr.strip().splitlines()
        assert "group 'payment' of stream 'orders': the handler of PLACED, 'shop.py:pay'," in line, command
        assert "there is no file shop.py" in line


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    import socket

    with socket.socket() as holder:
        port = free_port()
        holder.bind(("127.0.0.1", port))
        holder.listen()
        ended = Installation(place, port=port).command("run")
    assert ended.returncode != 0
    assert str(port) in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
