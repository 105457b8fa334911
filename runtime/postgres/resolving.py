"""From connection parameters to the addresses to try, without blocking the loop on DNS."""

from __future__ import annotations

import ipaddress

import psycopg
import trio

from . import internals
from .internals import ConnDict


async def resolve(params: ConnDict, limit: float) -> list[ConnDict]:
    """One set of parameters for each address to try, in order.

    Names are looked up in a thread, which a cancellation or the *limit* (seconds) leaves to itself: the system's
    resolver cannot be stopped, and holds nothing of ours.

    Raises:
        psycopg.OperationalError: no address was found, or not in time.
    """
    if _is_literal(params):
        return internals.conninfo_attempts(params)
    with trio.move_on_after(limit):
        return await trio.to_thread.run_sync(internals.conninfo_attempts, params, abandon_on_cancel=True)
    raise psycopg.errors.ConnectionTimeout(f"the name {params.get('host')!r} was not resolved within {limit:g} s")


def _is_literal(params: ConnDict) -> bool:
    """Whether there is nothing to look up: only socket directories and IP addresses."""
    hosts = str(params.get("hostaddr") or params.get("host") or "?").split(",")
    return all(host.startswith(("/", "@")) or _is_ip_address(host) for host in hosts)


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
