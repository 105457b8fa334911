"""Names of headers of our own, for those who send and those who read them."""

from __future__ import annotations

from typing import Final

__all__ = ["ACTOR"]

ACTOR: Final = "X-Penstock-Actor"
"""Who asks, for the record: a name, 1 to 200 characters. Without it, it is ``http``."""
