"""Fixtures of the integration tests: real processes, real servers, the real clock."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# The helper module stands beside this file; tests are no package.
sys.path.insert(0, str(Path(__file__).parent))

from installation import Installation


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory with a short path, removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="penstock-it-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def installation(place: Path) -> Iterator[Installation]:
    """An installation that is running, on embedded servers."""
    made = Installation(place)
    try:
        made.start()
        yield made
    finally:
        made.close()
