"""For tests of event systems: a `Store` in memory that behaves like PostgreSQL, in virtual time too."""

from .connection import MemoryConnection
from .effect import Effect
from .store import MemoryStore

__all__ = ["Effect", "MemoryConnection", "MemoryStore"]
