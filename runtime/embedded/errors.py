"""The errors of the embedded servers, each with the way out in its text."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataDirectoryError", "DataDirectoryInUse", "EmbeddedServerError", "LeftoverServer", "ServerNotInstalled"]


class EmbeddedServerError(Exception):
    """Base of the errors of this package. Trying again does not help: a person has to change something."""


class ServerNotInstalled(EmbeddedServerError):
    """The server's program is not there: the optional extra ``embedded`` is not installed, or not for this platform."""


class DataDirectoryError(EmbeddedServerError):
    """The data directory cannot be used; the text names the path at fault."""


class DataDirectoryInUse(DataDirectoryError):
    """Another penstock runs in this data directory.

    Attributes:
        path: the data directory.
        pid: process id of the other one; None in the moment between its lock and its note.
    """

    def __init__(self, path: Path, pid: int | None) -> None:
        who = "another penstock" if pid is None else f"another penstock (pid {pid})"
        super().__init__(f"{who} runs in {path}; stop it, or choose another directory with PENSTOCK_DATA_DIR")
        self.path = path
        self.pid = pid


class LeftoverServer(EmbeddedServerError):
    """A server of an earlier run still uses the data, and cannot be ended."""
