"""Servers of our own for development and tests: Valkey and PostgreSQL as supervised processes in one data directory.

    with DataDirectory(".penstock") as directory:
        valkey = EmbeddedValkey(directory, log=print)
        postgres = EmbeddedPostgres(directory, log=print)
        Supervisor("servers", [valkey.spec(), postgres.spec()])

Their programs come with the optional extra ``embedded``.
"""

from __future__ import annotations

from .datadir import DataDirectory
from .errors import (
    DataDirectoryError,
    DataDirectoryInUse,
    EmbeddedServerError,
    LeftoverServer,
    ServerNotInstalled,
)
from .postgres import EmbeddedPostgres
from .valkey import EmbeddedValkey

__all__ = [
    "DataDirectory",
    "DataDirectoryError",
    "DataDirectoryInUse",
    "EmbeddedPostgres",
    "EmbeddedServerError",
    "EmbeddedValkey",
    "LeftoverServer",
    "ServerNotInstalled",
]
