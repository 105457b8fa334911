"""A diary of the comings and goings of children."""

from __future__ import annotations

from typing import Any

import trio

from ..supervision import Body, Child
from .children import steady

__all__ = ["Diary"]


class Diary:
    """Who came and who went, in order: ``+a +b -b !a +a``.

        diary = Diary()
        tree = Tree(Supervisor("app", [ChildSpec(id=name, body=diary.of(name)) for name in "ab"]))
        async with running(tree):
            assert diary.take() == "+a +b"
        assert diary.take() == "-b -a"

    Attributes:
        lines: what was written since the last `take`: ``+name`` when a body begins, ``-name`` when it has returned or
            left on its cancel, ``!name`` when it left with an error.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def of(self, name: str, body: Body | None = None) -> Body:
        """`body`, its comings and goings written down under `name`. Default: a `steady` one."""
        kept = steady() if body is None else body

        async def written_down(child: Child, *args: Any) -> None:
            self.lines.append(f"+{name}")
            sign = "!"
            try:
                await kept(child, *args)
                sign = "-"
            except BaseException as error:
                if _is_cancelled(error):
                    sign = "-"
                raise
            finally:
                self.lines.append(f"{sign}{name}")

        return written_down

    def take(self) -> str:
        """What was written so far, with blanks between; the diary is empty then."""
        said, self.lines = " ".join(self.lines), []
        return said


def _is_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
