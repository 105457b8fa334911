"""PostgreSQL on trio: psycopg 3 with an exact cancellation rule, a pool, what an error means, and migrations."""

from .connection import Connection
from .cursors import ClientCursor, Cursor, RawCursor, RawServerCursor, ServerCursor
from .errors import PoolTimeout, PostgresRejected, PostgresUnavailable, classify
from .faults import ERRORS, FAULTS, ErrorRow, Fault
from .migrations import MigrationFailed, MigrationLimits, MigrationLocked, migrate, pending, roll_back
from .notifications import Gap, Notification, Notifications, NotificationsStatistics, listen
from .options import PostgresOptions
from .pool import Pool
from .pool_statistics import Loan, PoolStatistics
from .probe import ProbeResult, probe

__all__ = [
    "ERRORS",
    "FAULTS",
    "ClientCursor",
    "Connection",
    "Cursor",
    "ErrorRow",
    "Fault",
    "Gap",
    "Loan",
    "MigrationFailed",
    "MigrationLimits",
    "MigrationLocked",
    "Notification",
    "Notifications",
    "NotificationsStatistics",
    "Pool",
    "PoolStatistics",
    "PoolTimeout",
    "PostgresOptions",
    "PostgresRejected",
    "PostgresUnavailable",
    "ProbeResult",
    "RawCursor",
    "RawServerCursor",
    "ServerCursor",
    "classify",
    "listen",
    "migrate",
    "pending",
    "probe",
    "roll_back",
]
