"""A supervisor as the body of a child."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .child import Child
    from .declaration import Declaration

__all__ = ["Nested"]


class Nested:
    """The body of a supervisor that is a child of another one."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration

    async def __call__(self, child: Child) -> None:
        await self.declaration.serve(child)
