"""Whether the user's own servers are there, before anything is started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from ...actors.backends import postgres_options, redis_options
from ...actors.cluster_probe import probe_of
from ...actors.probes import PostgresProbe, Unhealthy
from ...actors.settings import ActorSettings
from ...runtime.cli import CommandError

__all__ = ["own_servers", "wait_for_servers"]

Probe = Callable[[], Awaitable[None]]


def own_servers(settings: ActorSettings, streams: Sequence[str] = (), *, within: float = 2.0) -> dict[str, Probe]:
    """A probe for each server of the user's own, by the name of its setting; each is given `within` seconds.

    That of Redis asks, too, whether we may read and write `streams`.

    Raises:
        CommandError: a URL cannot be used; the text names the setting.
    """
    probes: dict[str, Probe] = {}
    try:
        setting = "redis.url"
        if settings.redis.url is not None:
            probes[setting] = probe_of(redis_options(settings, settings.redis.url), streams, within=within)
        setting = "postgres.url"
        if settings.postgres.url is not None:
            probes[setting] = PostgresProbe(postgres_options(settings, settings.postgres.url))
    except ValueError as error:
        raise CommandError(f"{setting}: {error}", exit_code=2) from error
    return probes


async def wait_for_servers(settings: ActorSettings, limit: float) -> None:
    """Return when the user's own servers answer; at once if there are none.

    Blocks for `limit` seconds at the most (one attempt is always made).

    Raises:
        CommandError: one does not; exit code 2, and the text names the setting and the address.
    """
    deadline = trio.current_time() + limit
    for setting, probe in own_servers(settings).items():
        await _wait_for(setting, probe, deadline)


async def _wait_for(setting: str, probe: Probe, deadline: float) -> None:
    while True:
        problem = await attempt(probe, max(2.0, deadline - trio.current_time()))
        if problem is None:
            return
        if trio.current_time() + 0.25 >= deadline:
            raise CommandError(f"{setting}: {problem}", exit_code=2)
        await trio.sleep(0.25)


async def attempt(probe: Probe, limit: float) -> str | None:
    """One probe of at most `limit` seconds: None, or what is wrong."""
    with trio.move_on_after(limit):
        try:
            await probe()
        except Unhealthy as error:
            return str(error)
        return None
    return f"no answer within {limit:.2g} s"
