"""JSON answers: one way to write them, so that all look alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from quart_trio.wrappers import TrioResponse

__all__ = ["JSON", "NDJSON", "dump", "json_reply", "ndjson_reply"]

JSON = "application/json"
NDJSON = "application/x-ndjson"


def dump(value: Any) -> str:
    """Compact JSON. What it cannot hold is replaced: a number that is not finite by null, what is no UTF-8 by ``?``."""
    try:
        text = _compact(value)
    except ValueError:  # other programs' entries have NaN, or 1e400, and must be shown all the same
        text = _compact(json.loads(json.dumps(value), parse_constant=lambda _: None))
    return text.encode("utf-8", "replace").decode()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_reply(
    value: Any, status: int = 200, *, media_type: str = JSON, headers: Mapping[str, str] | None = None
) -> TrioResponse:
    """An answer with `value` as its body."""
    return TrioResponse(dump(value), status, headers=dict(headers or {}), content_type=media_type)


def ndjson_reply(values: Iterable[Any], status: int = 200) -> TrioResponse:
    """An answer with one value a line."""
    return TrioResponse("".join(dump(value) + "\n" for value in values), status, content_type=NDJSON)
