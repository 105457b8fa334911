"""The Redis link: redis-py's commands on trio, auto-pipelined. See `docs/how-to/redis-link.md`."""

from .client import Redis
from .cluster import (
    Address,
    ClusterConnection,
    ClusterNode,
    ClusterOptions,
    ClusterPipeline,
    ClusterStatistics,
    NodeStatistics,
    RedisCluster,
    Topology,
)
from .dedicated import DedicatedRedis
from .errors import (
    CommandRefused,
    InvalidRedisUrl,
    NotSent,
    OutcomeUnknown,
    RedisClosed,
    RedisStalled,
    RedisUnavailable,
)
from .messages import Gap, Message
from .options import RedisOptions
from .pipeline import Pipeline
from .pubsub import PubSub
from .replies import REPLIES, UNCLASSIFIED, Kind, Reply, classify
from .script import Script
from .sentinel import SentinelOptions
from .statistics import RedisStatistics
from .transaction import Transaction
from .urls import AnyRedis, open_client, read_url

__all__ = [
    "REPLIES",
    "UNCLASSIFIED",
    "Address",
    "AnyRedis",
    "ClusterConnection",
    "ClusterNode",
    "ClusterOptions",
    "ClusterPipeline",
    "ClusterStatistics",
    "CommandRefused",
    "DedicatedRedis",
    "Gap",
    "InvalidRedisUrl",
    "Kind",
    "Message",
    "NodeStatistics",
    "NotSent",
    "OutcomeUnknown",
    "Pipeline",
    "PubSub",
    "Redis",
    "RedisClosed",
    "RedisCluster",
    "RedisOptions",
    "RedisStalled",
    "RedisStatistics",
    "RedisUnavailable",
    "Reply",
    "Script",
    "SentinelOptions",
    "Topology",
    "Transaction",
    "classify",
    "open_client",
    "read_url",
]
