"""The names of a tree: who is reached under them now.

A name belongs to a child's specification (`ChildSpec.name`) and stays the same over restarts; what it points to is the
handle of the living incarnation, and nothing while there is none.
"""

from __future__ import annotations

from .brief import brief
from .errors import AlreadyStarted

__all__ = ["Names"]


class Names:
    """A registry of unique names."""

    def __init__(self) -> None:
        self._holders: dict[str, object] = {}

    def register(self, name: str, holder: object) -> None:
        """Let `name` stand for `holder`.

        Raises:
            AlreadyStarted: somebody holds it; the error has the holder.
        """
        if name in self._holders:
            held = self._holders[name]
            raise AlreadyStarted(f"the name {name!r} is held by {brief(held)}", held)
        self._holders[name] = holder

    def release(self, name: str, holder: object) -> None:
        """Free `name` if `holder` has it."""
        if self._holders.get(name) is holder:
            del self._holders[name]

    def whereis(self, name: str) -> object | None:
        """Who holds `name` now, or None."""
        return self._holders.get(name)
