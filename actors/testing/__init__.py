"""For tests of event systems: a `Store` in memory that behaves like PostgreSQL, in virtual time too."""

from .store import Effect, MemoryConnection, MemoryStore

__all__ = ["Effect", "MemoryConnection", "MemoryStore"]
