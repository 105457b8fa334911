"""The whole system under random faults, in virtual time: a quarter of the stories, and not one broken promise."""

from __future__ import annotations

import pytest
from stories import check, quarter


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", quarter(3))
def test_every_promise_is_kept(first: int) -> None:
    check(first)
