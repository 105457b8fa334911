"""`KeyFinder`: the keys of commands that the table does not know, as a server tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .keys import Positions
from .router import Router
from .steps import Nature

__all__ = ["KeyFinder"]


class KeyFinder:
    """Asks COMMAND INFO once for each name, and COMMAND GETKEYS each time where the places of the keys vary."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._places: dict[str, Positions | None] = {}

    async def __call__(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        """The keys of a command; empty for one that has none, or that no server knows. Raises RedisUnavailable."""
        words = [*args[0].split(), *args[1:]]
        if name not in self._places:
            self._places[name] = await self._ask_for_places(name)
        places = self._places[name]
        return await self._ask_for_keys(words) if places is None else places.of(words)

    async def _ask_for_places(self, name: str) -> Positions | None:
        """None: they vary."""
        reply = await self._router.call(_QUESTION, ("COMMAND", "INFO", name.replace(" ", "|")))
        about = reply[0] if isinstance(reply, list) and reply else None
        if about is None or isinstance(about, Exception):
            return _NONE  # the server will say that it does not know the command
        flags = {flag.decode() if isinstance(flag, bytes) else str(flag) for flag in about[2]}
        return None if "movablekeys" in flags else Positions(int(about[3]), int(about[4]), int(about[5]))

    async def _ask_for_keys(self, words: Sequence[Any]) -> Sequence[Any]:
        reply = await self._router.call(_QUESTION, ("COMMAND", "GETKEYS", *words))
        return reply if isinstance(reply, list) else ()  # an error: the command has no keys, or is not complete


_NONE: Final = Positions(0, 0, 0)
_QUESTION: Final = Nature(None, reads=True)
