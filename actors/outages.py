"""How those who read PostgreSQL for people tell that it is away: one error, whatever the link said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from ..runtime.postgres import Fault, PostgresUnavailable, classify

__all__ = ["outages"]


@contextmanager
def outages(address: str) -> Iterator[None]:
    """Raise `PostgresUnavailable` for whatever says that the server at `address` is away; all else as it is."""
    try:
        yield
    except PostgresUnavailable:
        raise
    except psycopg.Error as error:
        if classify(error) is Fault.OUTAGE:
            raise PostgresUnavailable("the connection was lost", address=address) from error
        raise
