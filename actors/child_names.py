"""The names of the children that stand for groups and partitions, as the tree has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .system import Group, Stream

__all__ = ["child_id", "group_id"]


def child_id(name: str) -> str:
    """The name as one of a child, which has no slash."""
    return name.replace("/", "_")


def group_id(group: Group, stream: Stream) -> str:
    """``GROUP@STREAM``."""
    return child_id(f"{group.name}@{stream.key}")
