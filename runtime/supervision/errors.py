"""The errors of supervision, each with what to do about it in its text."""

from __future__ import annotations

__all__ = [
    "InvalidSpec",
    "RestartLimitExceeded",
    "Stalled",
    "StartFailed",
    "StartTimeout",
    "SupervisionError",
    "UnknownGate",
]


class SupervisionError(Exception):
    """Base of all errors that supervision raises."""


class InvalidSpec(SupervisionError, ValueError):
    """A specification that cannot work; the text names the field and the value."""


class UnknownGate(SupervisionError, LookupError):
    """A child requires, or somebody asks for, a gate that was never added."""


class StartFailed(SupervisionError):
    """A child could not be started while its supervisor was starting; the cause is chained.

    As in OTP a failing first start is not retried: the children started before it are stopped in reverse order, and
    the supervisor's own start fails.
    """


class StartTimeout(SupervisionError):
    """A child was not ready within its `start_within`."""


class Stalled(SupervisionError):
    """A child that promised progress made none within its `progress_within`."""


class RestartLimitExceeded(SupervisionError):
    """More restarts than the intensity allows: the supervisor stopped all its children and gave up.

    Unlike OTP, where this ends with reason ``shutdown``, it is a typed crash: a parent never takes it for a normal end.
    """
