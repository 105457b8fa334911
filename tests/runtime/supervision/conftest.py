"""The helper modules stand beside this file; tests are no package. And what is thrown away is so early."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.runtime.supervision import roster, state

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _pruned() -> Iterator[None]:
    """Look for what is over from the first alarm or queued child on, not from the 64th: nothing else may go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_PRUNE_AT", 1)
        patch.setattr(roster, "_SPARE", 0)
        yield
