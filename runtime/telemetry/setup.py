"""Setting the log up, once for the process."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog

from ..settings.sections import LogSettings
from .rendering import ConsoleLine, JsonLine
from .writer import LineWriter

__all__ = ["close_logging", "configure_logging", "flush_logging", "get_logger"]

_OURS = "penstock"


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; `name` is the module's ``__name__``.

    ``log.info("batch added", stream=name, entries=12)``: a fixed text, and keys. Never raises and never blocks, once
    `configure_logging` was called; before that, records go to whatever the standard library's logging does with them.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)


def configure_logging(settings: LogSettings | None = None, stream: TextIO | None = None) -> None:
    """Send the log, and that of every library, to `stream` in the form that the settings say.

    May be called again; the last call holds. Lines are written by a thread (see `LineWriter`): nothing here waits for
    the stream. Libraries log from ``info`` up even where ours log ``debug``: some write whole headers at that level.

    Args:
        settings: level and format. Default: those of `LogSettings`.
        stream: default standard error, so that standard output holds nothing but what was asked for.
    """
    settings = LogSettings() if settings is None else settings
    stream = sys.stderr if stream is None else stream
    terminal = _is_terminal(stream)
    form: ConsoleLine | JsonLine
    if settings.format == "console" or (settings.format == "auto" and terminal):
        form = ConsoleLine(colours=terminal and not os.environ.get("NO_COLOR"))
    else:
        form = JsonLine()
    close_logging()
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root = logging.getLogger()
    root.addHandler(_Handler(stream, form))
    root.setLevel(max(level, logging.INFO))
    logging.getLogger(_OURS).setLevel(level)
    logging.captureWarnings(True)


def flush_logging(timeout: float = 1.0) -> bool:
    """Wait until all lines so far are written, for at most `timeout` seconds; blocks the thread. True if they are."""
    return all(handler.writer.flush(timeout) for handler in _handlers())


def close_logging(timeout: float = 1.0) -> None:
    """Flush as `flush_logging` does, and undo `configure_logging`."""
    for handler in _handlers():
        logging.getLogger().removeHandler(handler)
        handler.writer.close(timeout)
        handler.close()
        logging.captureWarnings(False)


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # closed
        return False


def _text_of(record: logging.LogRecord) -> str:
    """What the record says, without any of its values."""
    text = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    return text if isinstance(text, str) else ""


class _Handler(logging.Handler):
    """Renders records and hands the lines to a `LineWriter`; nothing that a record holds can make it raise."""

    def __init__(self, stream: TextIO | None, form: ConsoleLine | JsonLine) -> None:
        super().__init__()
        self._form = form
        self.writer = LineWriter(stream, self._dropped_line)
        formatter = structlog.stdlib.ProcessorFormatter(
            processors=[structlog.processors.StackInfoRenderer(), structlog.processors.format_exc_info, form]
        )
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - whatever a value's __str__ or __repr__ may raise
            line = self._line_of(record, _text_of(record), error)
        self.writer.write(line + "\n")

    def flush(self) -> None:
        """Called at exit by the standard library; bounded, for the reader may be stuck."""
        self.writer.flush(1.0)

    def _line_of(self, record: logging.LogRecord, text: str, error: Exception | None = None) -> str:
        event: dict[str, Any] = {"event": text, "_record": record}
        if error is not None:
            event["log_error"] = f"{type(error).__name__}: its values cannot be shown"
        return self._form(None, "", event)

    def _dropped_line(self, count: int) -> str:
        record = logging.LogRecord(f"{_OURS}.log", logging.WARNING, __file__, 0, "", (), None)
        return self._line_of(record, f"{count} log lines dropped: their reader was too slow") + "\n"
