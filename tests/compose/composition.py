"""`compose/` as the tests need it: the files merged and their variables put in, without an engine.

Only what these files use of the Compose specification: `${NAME:?text}` and `${NAME:-default}`, mappings that are
merged, lists that are put one behind the other. Where the real program is there, a test compares.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

COMPOSE = Path(__file__).parents[2] / "compose"

DEVELOPMENT = ("compose.yaml", "compose.override.yaml")
PRODUCTION = ("compose.yaml", "compose.prod.yaml")

SECRETS = {
    "REDIS_PASSWORD": "redis-admin.7001",
    "REDIS_APP_PASSWORD": "redis_app~7002",
    "POSTGRES_PASSWORD": "postgres-admin",
    "POSTGRES_APP_PASSWORD": "postgres-app",
}
"""Everything that has to be set."""

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:\?|:-)([^}]*))?\})")


class MissingVariable(Exception):
    """A variable that has to be set is not, or is empty; as `docker compose`, nothing is started then."""


def load(file: str) -> dict[str, Any]:
    """One file, as it stands."""
    return dict(YAML(typ="safe").load((COMPOSE / file).read_text()))


def composition(files: tuple[str, ...], environment: Mapping[str, str] = SECRETS) -> dict[str, Any]:
    """The files merged, with the variables put in; without the `x-` parts."""
    merged: Any = {}
    for file in files:
        merged = _merged(merged, load(file))
    return {
        name: _interpolated(value, environment) for name, value in dict(merged).items() if not name.startswith("x-")
    }


def service(name: str, files: tuple[str, ...] = DEVELOPMENT) -> dict[str, Any]:
    return dict(composition(files)["services"][name])


def docker_compose() -> list[str] | None:
    """The command of the real program, which reads configurations without an engine; None where it is not installed."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        return ["docker", "compose"] if plugin.returncode == 0 else None
    return None


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {name: _merged(below.get(name), above.get(name, below.get(name))) for name in {**below, **above}}
    if isinstance(below, list) and isinstance(above, list) and above is not below:
        return [*below, *above]
    return above


def _interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _interpolated(each, environment) for name, each in value.items()}
    if isinstance(value, list):
        return [_interpolated(each, environment) for each in value]
    return _VARIABLE.sub(lambda found: _value(found, environment), value) if isinstance(value, str) else value


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    dollar, name, operator, text = found.groups()
    if dollar:
        return dollar
    value = environment.get(name, "")
    if not value and operator == ":?":
        raise MissingVariable(f"{name} {text}")
    return value or (text or "")
