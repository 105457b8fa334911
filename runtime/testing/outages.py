"""An outage: a gate that is shut for some time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ..supervision import Gate

__all__ = ["outage", "shut"]


async def outage(gate: Gate, seconds: float, cause: str = "outage") -> None:
    """Shut `gate`, sleep so long, and open it again; also when cancelled.

    Held children start when the gate has been open for its settle time, which is not waited for here.
    """
    with shut(gate, cause):
        await trio.sleep(seconds)


@contextmanager
def shut(gate: Gate, cause: str = "outage") -> Iterator[Gate]:
    """``with shut(gate, "no database"): …``: shut while the block runs, opened when it ends."""
    gate.shut(cause)
    try:
        yield gate
    finally:
        gate.open()
