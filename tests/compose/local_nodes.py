"""The nodes of compose.yaml as local processes: the same configuration, start script, command lines and entry program.

What differs from a container: the ports, the directories, and that every node is announced as `localhost`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field
from composition import COMPOSE, PRODUCTION, SECRETS, service

from penstock.runtime.testing.servers import LocalCluster, LocalNode, free_port

NAMES = tuple(f"redis-{number}" for number in range(1, 7))

_START = "/etc/redis/start-node.sh"
_FORM = "/opt/penstock/form_cluster.py"


@define(eq=False)
class Nodes(LocalCluster):
    """Some of the nodes, in the order of their names; `start` and `form` are up to the test.

    Attributes:
        names: the names of the services, in the order of `nodes`.
    """

    names: tuple[str, ...] = field(kw_only=True)

    def node(self, name: str) -> LocalNode:
        return self.nodes[self.names.index(name)]

    @property
    def url(self) -> str:
        """That of the penstock service."""
        return self.local(service("penstock", PRODUCTION)["environment"]["PENSTOCK_REDIS_URL"])

    def local(self, text: str) -> str:
        """A text of compose.yaml with the nodes' places instead of those in the container network."""
        return re.sub(r"\b(redis-\d):(\d+)\b", lambda found: f"localhost:{self.node(found[1]).port}", text)

    def entry(self, name: str, *further: str) -> list[str]:
        """The command line of one of the services that form the cluster, here."""
        declared = service(name, PRODUCTION)
        assert declared["entrypoint"] == ["python", _FORM]
        program = COMPOSE / "redis" / Path(_FORM).name
        return [sys.executable, str(program), *further, *map(self.local, declared["command"])]

    def start_entry(self, name: str = "redis-cluster", *further: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **service(name, PRODUCTION)["environment"]}
        pipe = subprocess.PIPE
        return subprocess.Popen(self.entry(name, *further), env=environment, stdout=pipe, stderr=pipe, text=True)

    def run_entry(self, name: str = "redis-cluster", *further: str) -> tuple[int, str]:
        """Run one of the services that form the cluster to its end: the exit code, and all that it said."""
        return ended(self.start_entry(name, *further))


def ended(entry: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = entry.communicate(timeout=60)
    return entry.returncode, output + errors


@contextmanager
def local_nodes(program: str, *, names: Sequence[str] = NAMES[:3], start: bool = True) -> Iterator[Nodes]:
    """The nodes of that server program; killed, and their data removed, at the end."""
    directory = Path(tempfile.mkdtemp(prefix="pc-"))
    made = Nodes([], directory, SECRETS["REDIS_PASSWORD"], names=tuple(names))
    try:
        for name in names:
            made.nodes.append(_node(name, program, directory))
            if start:
                made.nodes[-1].start()
        yield made
    finally:
        made.remove()


def _node(name: str, program: str, directory: Path) -> LocalNode:
    """See `LocalNode.start`, which puts port and directory behind these arguments."""
    declared = service(name, PRODUCTION)
    assert declared["entrypoint"] == ["sh", _START]
    arguments = list(declared["command"])
    at = arguments.index("--port")
    del arguments[at : at + 2]
    arguments[arguments.index(name)] = "localhost"
    home = directory / name
    home.mkdir()
    (home / "bin").mkdir()
    (home / "bin" / "redis-server").symlink_to(program)
    return LocalNode(str(_wrapper(home, declared["environment"])), free_port(bus=True), home, arguments)


def _wrapper(home: Path, environment: dict[str, Any]) -> Path:
    """Stands for the container: its environment, its PATH, and its entry point."""
    script = COMPOSE / "redis" / Path(_START).name
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    path = f"export PATH={shlex.quote(str(home / 'bin'))}:$PATH"
    wrapper = home / "container"
    wrapper.write_text("\n".join(["#!/bin/sh", *exports, path, f'exec sh {shlex.quote(str(script))} "$@"', ""]))
    wrapper.chmod(0o700)
    return wrapper
