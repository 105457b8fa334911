"""The fixture `browser`: a real Chromium with a profile of its own. Skips where there is none."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent


def _load(path: Path) -> ModuleType:
    """A module of the tests, which are no package, so that it cannot be imported."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


chromium = _load(_HERE / "chromium.py")
fakes = _load(_HERE.parent / "http" / "fake_deployment.py")


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Any]:
    executable = chromium.find()
    if executable is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    async with chromium.launch(executable, tmp_path / "profile") as launched:
        yield launched


@pytest.fixture
def make_deployment() -> Any:
    """Makes the running system in memory of the HTTP tests."""
    return fakes.FakeDeployment
