"""Whether a call comes from where it may: out of trio, and not out of another thread."""

from __future__ import annotations

import trio

__all__ = ["check_caller"]


def check_caller(what: str) -> None:
    """Refuse a call from another thread, before it has changed anything.

    Raises:
        RuntimeError: there is no trio run here; the text says what to do.
    """
    try:
        trio.current_time()
    except RuntimeError:
        text = f"{what} was called from outside of trio; in a thread write trio.from_thread.run_sync(…) around it"
        raise RuntimeError(text) from None
