"""Supervision and a mailbox used alone: a crash, an outage, and an ordered stop, in half a second.

python docs/examples/supervision.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import trio

from penstock.runtime import Backoff, Child, ChildSpec, Gates, Mailbox, Strategy, Supervisor, Tree

sacks: Mailbox[str] = Mailbox("sacks", capacity=10)
gates = Gates()
river = gates.add("river", settle=0.05)


async def wheel(child: Child) -> None:
    """Needs the river: it is held while that is low, and started again when it is back."""
    child.started()
    print("the wheel turns")
    try:
        await trio.sleep_forever()
    finally:
        print("the wheel stands")


async def miller(child: Child) -> None:
    """Crashes on one sack; those behind it wait in the mailbox for the next miller."""
    async with sacks.receive() as inbox:
        child.started()
        async for sack in inbox:
            child.note(f"grinding {sack}")
            if sack == "stones":
                raise ValueError("these are stones")
            print(f"miller {child.incarnation} grinds {sack}")


async def main() -> None:
    tree = Tree(
        Supervisor(
            "mill",
            [
                ChildSpec(id="wheel", body=wheel, requires=("river",)),
                ChildSpec(id="miller", body=miller, backoff=Backoff(minimum=0.02, maximum=1.0)),
            ],
            strategy=Strategy.ONE_FOR_ONE,
        ),
        gates=gates,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        for sack in ("wheat", "stones", "rye"):
            await sacks.tell(sack)
        await trio.sleep(0.1)

        river.shut("no rain since June")
        await trio.sleep(0.05)
        for view in tree.snapshot().root.children:
            print(f"{view.path}: {view.state}, {view.restarts} restarts, {view.cause or view.note}")
        river.open()
        await trio.sleep(0.1)
        tree.stop("the day is over")


if __name__ == "__main__":
    trio.run(main)
