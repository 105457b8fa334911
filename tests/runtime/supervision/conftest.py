"""The helper modules stand beside this file; tests are no package. And alarms are looked through early."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.runtime.supervision import state

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _pruned() -> Iterator[None]:
    """Look for alarms that are over from the first one on, not from the 64th: none that is to ring may go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_PRUNE_AT", 1)
        yield
