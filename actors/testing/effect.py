"""What a handler has done to a database in memory."""

from __future__ import annotations

from typing import Any

from attrs import frozen

__all__ = ["Effect"]


@frozen
class Effect:
    """A statement that a handler executed: what a test counts."""

    statement: str
    values: tuple[Any, ...]
