"""The Redis link for a cluster. See `docs/how-to/redis-cluster.md`."""

from .client import RedisCluster
from .dedicated import ClusterConnection
from .node_client import ClusterNode
from .options import ClusterOptions
from .pipeline import ClusterPipeline
from .statistics import ClusterStatistics, NodeStatistics
from .topology import Address, Topology

__all__ = [
    "Address",
    "ClusterConnection",
    "ClusterNode",
    "ClusterOptions",
    "ClusterPipeline",
    "ClusterStatistics",
    "NodeStatistics",
    "RedisCluster",
    "Topology",
]
