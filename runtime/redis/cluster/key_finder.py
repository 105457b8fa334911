"""`KeyFinder`: the keys of commands that the table does not know, as a server tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .keys import Positions
from .router import Router
from .steps import Nature

__all__ = ["KeyFinder"]


class KeyFinder:
    """Asks COMMAND INFO for each name until it is told, and COMMAND GETKEYS each time where the keys' places vary."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._places: dict[str, Positions | None] = {}

    async def __call__(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        """The keys of a command; empty for one that has none, that no server knows, or that no server tells of now.

        Raises RedisUnavailable.
        """
        words = [*args[0].split(), *args[1:]]
        if name not in self._places:
            reply = await self._router.call(_QUESTION, ("COMMAND", "INFO", name.replace(" ", "|")))
            if isinstance(reply, Exception):
                return ()  # that may pass (LOADING, a right that is missing); the redirection tells the node for now
            self._places[name] = _places_in(reply)
        places = self._places[name]
        return await self._ask_for_keys(words) if places is None else places.of(words)

    async def _ask_for_keys(self, words: Sequence[Any]) -> Sequence[Any]:
        reply = await self._router.call(_QUESTION, ("COMMAND", "GETKEYS", *words))
        return reply if isinstance(reply, list) else ()  # an error: the command has no keys, or is not complete


def _places_in(reply: Any) -> Positions | None:
    """What COMMAND INFO says; None: they vary."""
    about = reply[0] if isinstance(reply, list) and reply else None
    if about is None or isinstance(about, Exception):
        return _NONE  # the server will say that it does not know the command
    flags = {flag.decode() if isinstance(flag, bytes) else str(flag) for flag in about[2]}
    return None if "movablekeys" in flags else Positions(int(about[3]), int(about[4]), int(about[5]))


_NONE: Final = Positions(0, 0, 0)
_QUESTION: Final = Nature(None, reads=True)
