"""PostgreSQL on trio: psycopg 3 with an exact cancellation rule, a pool, and what an error means."""

from .connection import Connection
from .errors import FAULTS, Fault, PoolTimeout, PostgresRejected, PostgresUnavailable, classify
from .options import PostgresOptions
from .pool import Pool, PoolStatistics

__all__ = [
    "FAULTS",
    "Connection",
    "Fault",
    "Pool",
    "PoolStatistics",
    "PoolTimeout",
    "PostgresOptions",
    "PostgresRejected",
    "PostgresUnavailable",
    "classify",
]
