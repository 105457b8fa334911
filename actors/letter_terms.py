"""The terms by which dead letters are told apart: why they were given up, and what has become of them."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["STATUSES", "Reason"]

STATUSES: Final = ("dead", "replaying", "replayed", "discarded")
"""What may have become of a letter."""


class Reason(enum.StrEnum):
    """Why an entry was given up."""

    MAX_DELIVERIES = "max_deliveries"
    """It failed as often as it may."""

    PERMANENT = "permanent"
    """It would fail again in the same way: an unknown type, invalid data, a constraint, or its handler says so."""

    UNDECODABLE = "undecodable"
    """Its fields are no event."""

    TRIMMED = "trimmed"
    """It was trimmed or deleted while it was pending: there is nothing left to handle."""

    POISON = "poison"
    """It killed the worker that handled it."""

    EXPIRED = "expired"
    """It was older than its type's `max_age` when its turn came, and was not handled."""
