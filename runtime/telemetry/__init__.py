"""The log: structlog on top of the standard library's logging, so that every library's lines look like ours.

``get_logger(__name__)`` is all that most modules need. Who runs the process calls `configure_logging` once.
"""

from __future__ import annotations

from .lifecycle import LifecycleLog, log_lifecycle
from .setup import close_logging, configure_logging, flush_logging, get_logger

__all__ = ["LifecycleLog", "close_logging", "configure_logging", "flush_logging", "get_logger", "log_lifecycle"]
