"""What a setting's value must be, as attrs validators.

A validator raises `ValueError` with what is expected, and never with the value itself: `load` puts the key, the place
and the (masked) value in front. All let ``None`` through, which means *not set*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Validator", "above_zero", "at_least", "url_of", "zero_or_more"]

Validator = Callable[[Any, Any, Any], None]


def above_zero(instance: object, attribute: Any, value: float | None) -> None:
    """A finite number above zero: what a limit in seconds has to be, for "no limit" is no setting here."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError("must be above 0 and finite")


def zero_or_more(instance: object, attribute: Any, value: float | None) -> None:
    """A finite number, 0 or more."""
    if value is not None and not 0 <= value < math.inf:
        raise ValueError("must be 0 or more and finite")


def at_least(least: int, most: float = math.inf) -> Validator:
    """A finite number not below `least`, and not above `most`."""

    def check(instance: object, attribute: Any, value: float | None) -> None:
        if value is not None and not (least <= value <= most and value < math.inf):
            raise ValueError(f"must be {least} or more" if most == math.inf else f"must be from {least} to {most}")

    return check


def url_of(*schemes: str) -> Validator:
    """A URL with one of these schemes and a host (or, for ``unix``, a path); nothing is looked up or connected to."""
    listed = " or ".join(f"{scheme}://" for scheme in schemes)

    def check(instance: object, attribute: Any, value: str | None) -> None:
        if value is None:
            return
        scheme, separator, rest = value.partition("://")
        if not separator or scheme not in schemes:
            raise ValueError(f"must be a URL that begins with {listed}")
        if not rest:
            raise ValueError("must name a host after ://")
        _check_ports(rest)

    return check


def _check_ports(rest: str) -> None:
    """Every ``:port`` of the host list is a number; IPv6 addresses stand in brackets.

    `urllib` alone reads one host only, and drivers report a bad port late and without the setting's name.
    """
    hosts = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    for host in hosts.split(","):
        try:
            urlsplit(f"//{host}").port  # noqa: B018 - reading it is the check
        except ValueError:
            raise ValueError("must have ports that are numbers from 0 to 65535") from None
