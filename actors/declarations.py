"""What all declarations have in common: the error of one that cannot work, and the check of what is to be called."""

from __future__ import annotations

import inspect

__all__ = ["DeclarationError", "check_async"]


class DeclarationError(ValueError):
    """A declaration that cannot work; the text names the stream, the group and the handler."""


def check_async(where: str, what: str, call: object) -> None:
    """Raise `DeclarationError` unless `call` is an async function, or an object with an async ``__call__``."""
    if not inspect.iscoroutinefunction(call) and not inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - an object with an async __call__ will do
    ):
        raise DeclarationError(f"{where}: a {what} is an async function, not {call!r}")
