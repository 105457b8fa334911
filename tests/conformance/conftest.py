"""What the tests of this folder share stands in modules beside them, and beside those of the supervisor itself."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent

sys.path[:0] = [str(_HERE), str(_HERE.parent / "runtime" / "supervision")]
