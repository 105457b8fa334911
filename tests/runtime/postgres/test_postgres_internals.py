"""The gate for an upgrade of psycopg: the private names that the link leans on exist and do what it needs."""

from __future__ import annotations

import ast
import inspect
import socket
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.generators import execute

import penstock.runtime.postgres
from penstock.runtime.postgres import Connection, PostgresOptions, internals

_PACKAGE = Path(inspect.getfile(penstock.runtime.postgres)).parent


@pytest.mark.parametrize("ready", [internals.ready, internals._ready_by_poll])
def test_ready_tells_what_a_socket_is_ready_for(ready) -> None:
    one, other = socket.socketpair()
    with one, other:
        both = internals.READ | internals.WRITE
        assert ready(one.fileno(), both) == internals.WRITE
        other.send(b"x")
        assert ready(one.fileno(), both) == both
        assert ready(one.fileno(), internals.READ) == internals.READ
        other.close()
        one.recv(10)
        assert ready(one.fileno(), internals.READ) == internals.READ, "an end is there to be read"


async def test_a_generator_can_be_resumed_after_an_interrupted_wait(options: PostgresOptions) -> None:
    """`next()` on suspended steps asks again for the same readiness: the interruption of a wait rests on it."""
    connection = await Connection.open(options)
    connection.pgconn.send_query(b"select pg_sleep(0.05)")
    steps = execute(connection.pgconn)
    first = next(steps)
    assert next(steps) == next(steps) == first
    results = None
    while results is None:
        await trio.lowlevel.wait_readable(connection.pgconn.socket)
        try:
            steps.send(internals.READ)
        except StopIteration as end:
            results = end.value
    assert len(results) == 1
    await connection.close()


async def test_psycopg_locks_only_by_acquire_and_release(options: PostgresOptions) -> None:
    """The lock is replaced: psycopg must use it as a context manager (or by acquire and release) and nothing else."""
    connection = await Connection.open(options)
    async with connection.lock:
        assert connection.lock.locked()
    assert not connection.lock.locked()
    await connection.close()


def test_wait_timeout_is_what_notifies_expects() -> None:
    source = inspect.getsource(psycopg.AsyncConnection.notifies)
    assert f"except e.{internals.WaitTimeout.__name__}" in source


def test_private_names_of_psycopg_are_used_in_one_module_only() -> None:
    """Every underscored name that the package's other modules use is one that the package itself defines."""
    trees = {path: ast.parse(path.read_text()) for path in _PACKAGE.glob("*.py") if path.name != "internals.py"}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    ours |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for path, node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            assert node.attr in ours, f"{path.name}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert "._" not in (node.module or ""), f"{path.name}: {ast.unparse(node)}"
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], path.name
