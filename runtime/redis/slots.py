"""Hash slots of Redis Cluster: which one a key is in. Source: the cluster specification, "Key distribution model"."""

from __future__ import annotations

from typing import Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

__all__ = ["SLOTS", "hash_tag", "slot_of"]

SLOTS: Final[int] = REDIS_CLUSTER_HASH_SLOTS
"""How many there are: 16384."""


def slot_of(key: str | bytes) -> int:
    """The slot of a key, 0 to 16383: CRC16 of its hash tag, or of the whole key."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


def hash_tag(key: str) -> str:
    """What decides the slot: the text between the first ``{`` and the next ``}``, or the key if that is empty."""
    tag = key.partition("{")[2].partition("}")[0] if "}" in key.partition("{")[2] else ""
    return tag or key
