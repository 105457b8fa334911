"""What all declarations have in common: the error of one that cannot work, and the check of what is to be called."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeGuard

__all__ = ["DeclarationError", "check_async", "check_name", "is_async"]

LONGEST_NAME: Final = 256
"""Characters of a name: two of them stand in one index of the database, which takes no more than 2,704 bytes."""

MOST_PARTITIONS: Final = 16_384
"""Partitions of a stream: a cluster has so many slots."""


class DeclarationError(ValueError):
    """A declaration that cannot work; the text names the stream, the group and the handler."""


def check_async(where: str, what: str, call: object) -> None:
    """Raise `DeclarationError` unless `call` is an async function, or an object with an async ``__call__``."""
    if not is_async(call):
        raise DeclarationError(f"{where}: a {what} is an async function, not {call!r}")


def is_async(call: object) -> TypeGuard[Callable[..., Awaitable[Any]]]:
    """Whether `call` is an async function, or an object with an async ``__call__``; a class is none, but makes such."""
    return inspect.iscoroutinefunction(call) or (
        not inspect.isclass(call) and inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
    )


def check_name(what: str, name: object) -> None:
    """Raise `DeclarationError` unless `name` can stand in Redis, in the database, and in one line of a log."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > LONGEST_NAME:
        shown = repr(name) if len(repr(name)) <= LONGEST_NAME else f"one of {len(str(name))} characters"
        raise DeclarationError(
            f"{what} is a non-empty string of at most {LONGEST_NAME} characters that can be printed, not {shown}"
        )
