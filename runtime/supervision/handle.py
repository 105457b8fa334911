"""What others hold of a child: the identity of one incarnation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from .child import Child
    from .outcome import ErrorInfo

__all__ = ["ChildHandle"]


class ChildHandle:
    """One incarnation of a child, for whoever wants to stop it, watch it, or know whom it talks to.

    There is one handle for each incarnation, and it is equal to no other: after a restart the child has a new one.

    Attributes:
        path: the child's place in the tree.
        id: its name among its siblings.
        incarnation: 1 for the first start, 2 for the second, …
    """

    __slots__ = ("__weakref__", "_child", "_ended", "_error", "_owner", "id", "incarnation", "path")

    def __init__(self, child: Child, owner: object) -> None:
        self.path = child.path
        self.id = child.id
        self.incarnation = child.incarnation
        self._child = child
        self._owner = owner
        self._ended = trio.Event()
        self._error: ErrorInfo | None = None

    @property
    def info(self) -> object:
        """What the child gave to `Child.started`; None before that."""
        return self._child.info

    @property
    def is_alive(self) -> bool:
        """Whether its task is there."""
        return not self._ended.is_set()

    async def wait_ended(self) -> ErrorInfo | None:
        """Block until its task is gone; what it crashed with, or None when it returned or was stopped."""
        await self._ended.wait()
        return self._error

    def _end(self, error: ErrorInfo | None) -> None:
        self._error = error
        self._ended.set()

    def __repr__(self) -> str:
        return f"<ChildHandle {self.path} #{self.incarnation}{'' if self.is_alive else ', ended'}>"
