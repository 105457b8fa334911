"""All settings of a process: what `penstock run` reads from file and environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen

from ..actors.settings import ActorSettings
from ..runtime.settings import LogSettings, StartSettings
from .settings import HttpSettings

__all__ = ["Settings"]


def _system_name(instance: object, attribute: Any, value: str | None) -> None:
    if value is not None and (not value or "/" in value):
        raise ValueError("must be a non-empty text without /")


@frozen(kw_only=True)
class Settings(ActorSettings):
    """Penstock.

    Attributes:
        system: the system, as `module:attribute` or `file.py:attribute`: what commands take that are given none. Not
            set: the streams of `[streams.…]` alone make one; without any it is the access-event system.
        name: of a system that is made of these settings alone, the root of its tree; not set: `penstock`. Two on one
            database need names of their own.
        migrations: a directory of migrations that make the tables of its handlers, of such a system, too.
        data_dir: where embedded servers keep their data, and where the identity of this installation is kept.
        http: the HTTP front end.
        log: the log.
        start: the start of `penstock run`.
    """

    system: str | None = None
    name: str | None = field(default=None, validator=_system_name)
    migrations: Path | None = None
    data_dir: Path = Path(".penstock")
    http: HttpSettings = field(factory=HttpSettings)
    log: LogSettings = field(factory=LogSettings)
    start: StartSettings = field(factory=StartSettings)
