"""All settings of a process: what `penstock run` reads from file and environment."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from ..actors.settings import ActorSettings
from ..runtime.settings import LogSettings, StartSettings
from .settings import HttpSettings

__all__ = ["Settings"]


@frozen(kw_only=True)
class Settings(ActorSettings):
    """Penstock.

    Attributes:
        data_dir: where embedded servers keep their data, and where the identity of this installation is kept.
        http: the HTTP front end.
        log: the log.
        start: the start of `penstock run`.
    """

    data_dir: Path = Path(".penstock")
    http: HttpSettings = field(factory=HttpSettings)
    log: LogSettings = field(factory=LogSettings)
    start: StartSettings = field(factory=StartSettings)
