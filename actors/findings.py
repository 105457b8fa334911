"""What a check has found: with what weight, and what to do about it."""

from __future__ import annotations

import enum
from typing import Final

from attrs import frozen

__all__ = ["NAMES", "Finding", "Severity"]

NAMES: Final = ("version", "eviction", "append-only", "access", "clock", "slots", "groups")
"""The checks, as the setting ``checks.allow`` names them."""


class Severity(enum.StrEnum):
    """What follows from a finding."""

    GOOD = "good"
    WARN = "warn"
    """Somebody should mend it."""

    REFUSE = "refuse"
    """Events could be lost, or cannot be handled: nothing is done until it is mended."""


@frozen(kw_only=True)
class Finding:
    """What a check has found.

    Attributes:
        name: of the check, one of `NAMES`.
        where: the server, the stream or the group.
        severity: what follows from it.
        found: what was found, in words.
        mend: what to do about it; empty if it is good.
    """

    name: str
    where: str
    severity: Severity
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; {self.mend}" if self.mend else "")
