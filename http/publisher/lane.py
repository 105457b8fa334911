"""What is to be sent to one stream, in order. Pure but for the events that waiters wait for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import anyio
from attrs import define, field

from .item import Item

__all__ = ["Lane"]


@define(eq=False)
class Lane:
    """The events of one stream; at most one request of it is under way, so that their order is kept.

    Attributes:
        stream: its key.
        queue: what has not been sent; a mapping to nothing, out of the middle of which one is taken at no cost.
        flying: what is being sent, or is to be sent again, before all of `queue`.
        full: set when it is not worth waiting for more.
        trouble: why its last request failed; empty if it did not.
    """

    stream: str
    queue: OrderedDict[Item, None] = field(factory=OrderedDict)
    flying: list[Item] = field(factory=list)
    full: anyio.Event = field(factory=anyio.Event)
    trouble: str = ""

    def add(self, item: Item) -> None:
        """Put an event behind all others."""
        self.queue[item] = None

    def take(self, most: int, most_bytes: int) -> None:
        """Move the next batch from `queue` to `flying`: at least one, if there is any."""
        size = sum(len(item.line) + 1 for item in self.flying)
        while self.queue and len(self.flying) < most:
            item = next(iter(self.queue))
            size += len(item.line) + 1
            if self.flying and size > most_bytes:
                return
            self.flying.append(item)
            del self.queue[item]

    def put_back(self, limit: int) -> None:
        """Leave `limit` events in `flying`, and put what is behind them back to the front of `queue`."""
        for item in reversed(self.flying[limit:]):
            self.queue[item] = None
            self.queue.move_to_end(item, last=False)
        del self.flying[limit:]

    def withdraw(self, items: Iterable[Item]) -> list[Item]:
        """Take out those that certainly have not been accepted and are not under way, and return them."""
        out = [item for item in items if item in self.queue and not item.maybe]
        for item in out:
            del self.queue[item]
        return out

    def items(self) -> list[Item]:
        """Everything that has no outcome, in order."""
        return [*self.flying, *self.queue]

    def drop(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out whatever is `gone`, and return it."""
        out = [item for item in self.items() if gone(item)]
        if out:
            self.flying = [item for item in self.flying if not gone(item)]
            self.queue = OrderedDict.fromkeys(item for item in self.queue if not gone(item))
        return out
