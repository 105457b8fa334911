from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

PLUGIN = '''
import os
import sys
import threading

import click
import trio
from attrs import field, frozen

from penstock.runtime.cli import CommandError, json_option, load_settings
from penstock.runtime.output import echo_json, echo_table
from penstock.runtime.settings import RedisSettings


@frozen(kw_only=True)
class Settings:
    """Attributes:
        redis: Redis.
    """

    redis: RedisSettings = field(factory=RedisSettings)


@click.command()
@json_option
def show(as_json):
    """Show the URL."""
    url = load_settings(Settings).redis.url
    echo_json({"url": url}) if as_json else echo_table([[url]], ["URL"])


@click.group()
def group():
    """Has commands below."""


@group.command()
def below():
    """Stands below."""
    click.echo(load_settings(Settings).redis.url)


@click.command()
@click.argument("how")
def fail(how):
    """Fail in one way or another."""
    async def grouped(error):
        async with trio.open_nursery() as nursery:
            async def body():
                raise error
            nursery.start_soon(body)
            nursery.start_soon(trio.sleep_forever)

    match how:
        case "command":
            raise CommandError("Redis at redis://u:s3cret@h:1 is away", 2)
        case "codes":  # as a server's answer may have them
            raise CommandError("no stream \\x1b[2J")
        case "grouped":
            trio.run(grouped, CommandError("from a nursery", 3))
        case "bug":
            raise ValueError("a\\nb redis://u:s3cret@h")
        case "pipe":  # a connection's, not our output's
            raise BrokenPipeError(32, "Broken pipe")
        case "exit":
            sys.exit(7)
        case "endless":
            while True:
                click.echo("x" * 1000)
        case "interrupted":
            print("ready", flush=True)
            trio.run(trio.sleep_forever)
        case "interrupted-grouped":
            trio.run(grouped, KeyboardInterrupt())


not_a_command = 5
'''

BROKEN = "import a_module_that_nobody_has\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a site-packages: an installed distribution with plug-ins, two of them broken."""
    there = tmp_path_factory.mktemp("site")
    (there / "plugin_of_tests.py").write_text(PLUGIN)
    (there / "broken_of_tests.py").write_text(BROKEN)
    info = there / "plugin_of_tests-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-tests\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
            [penstock.commands]
            x-show = plugin_of_tests:show
            x-group = plugin_of_tests:group
            x-fail = plugin_of_tests:fail
            x-broken = broken_of_tests:command
            x-number = plugin_of_tests:not_a_command
            """)
    )
    return there


class Penstock:
    """The command, run as a user does, with the plug-ins of these tests installed."""

    def __init__(self, site: Path, directory: Path) -> None:
        self.directory = directory
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self.environ = {**ours, "PYTHONPATH": str(site)}
        self.command = [sys.executable, "-c", "from penstock.runtime.cli import main; main()"]

    def __call__(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.directory,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def penstock(site: Path, tmp_path: Path) -> Penstock:
    return Penstock(site, tmp_path)


def test_the_installed_script_is_this_command() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="penstock")
    assert script.value == "penstock.runtime.cli:main"


def test_version_names_what_a_bug_report_needs(penstock: Penstock) -> None:
    done = penstock("--version")
    assert done.stdout.startswith(f"penstock {metadata.version('penstock')} (Python 3.")
    assert "trio" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_the_broken_ones_with_the_reason(
    penstock: Penstock, arguments: tuple[str, ...]
) -> None:
    done = penstock(*arguments)
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "x-show Show the URL." in text
    assert "x-group Has commands below." in text
    assert "x-broken (cannot be loaded: ModuleNotFoundError: No module named" in text
    assert "x-number (cannot be loaded: TypeError: it is no click command)" in text


def test_a_broken_plug_in_says_so_in_one_line_whatever_it_is_given(penstock: Penstock) -> None:
    done = penstock("x-broken", "MODULE:SYSTEM", "--config", "x", "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "penstock: the command 'x-broken' (broken_of_tests:command) cannot be loaded: "
        "ModuleNotFoundError: No module named 'a_module_that_nobody_has'\n"
    )


def test_a_broken_plug_in_takes_no_other_down(penstock: Penstock) -> None:
    done = penstock("x-show", PENSTOCK_REDIS_URL="redis://h")
    assert (done.returncode, done.stdout) == (0, "URL\nredis://h\n")


def test_json_is_for_scripts(penstock: Penstock) -> None:
    assert json.loads(penstock("x-show", "--json", PENSTOCK_REDIS_URL="redis://h").stdout) == {"url": "redis://h"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "my.toml", "x-show", "--json"),
        ("x-show", "--config", "my.toml", "--json"),
        ("x-show", "--json", "--config=my.toml"),
        ("x-group", "below", "--config", "my.toml"),
        ("x-group", "--config", "my.toml", "below"),
    ],
)
def test_config_may_stand_before_or_after_the_command(penstock: Penstock, arguments: tuple[str, ...]) -> None:
    (penstock.directory / "my.toml").write_text('redis.url = "redis://file"\n')
    done = penstock(*arguments)
    assert done.returncode == 0, done.stderr
    assert "redis://file" in done.stdout


def test_settings_that_cannot_be_used_end_with_exit_code_2_and_one_line(penstock: Penstock) -> None:
    (penstock.directory / "penstock.toml").write_text('[redis]\nurll = "redis://h"\n')
    done = penstock("x-show", PENSTOCK_REDIS_URL="http://u:s3cret@h")
    assert done.returncode == 2
    assert done.stderr == (
        'penstock: unknown key "urll" in penstock.toml, table [redis]; did you mean "url"? (and 1 more)\n'
    )


def test_a_configuration_file_that_is_not_there_is_named(penstock: Penstock) -> None:
    done = penstock("x-show", "--config", "nope.toml")
    assert done.returncode == 2
    assert done.stderr == "penstock: there is no configuration file nope.toml (asked for by --config)\n"


@pytest.mark.parametrize(
    ("arguments", "named", "where"),
    [
        (("--nope",), "--nope", "penstock"),
        (("x-show", "--nope"), "--nope", "penstock x-show"),
        (("x-fail",), "HOW", "penstock x-fail"),
        (("nope",), "nope", "penstock"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    penstock: Penstock, arguments: tuple[str, ...], named: str, where: str
) -> None:
    done = penstock(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("penstock: ")
    assert named in done.stderr
    assert done.stderr.endswith(f". See '{where} --help'.\n")


def test_a_command_s_own_failure_is_its_line_and_its_exit_code_without_secrets(penstock: Penstock) -> None:
    done = penstock("x-fail", "command")
    assert (done.returncode, done.stderr) == (2, "penstock: Redis at redis://u:***@h:1 is away\n")


def test_a_failure_brings_no_codes_to_the_terminal(penstock: Penstock) -> None:
    assert penstock("x-fail", "codes").stderr == "penstock: no stream \\x1b[2J\n"


def test_a_failure_out_of_a_nursery_is_the_same_failure(penstock: Penstock) -> None:
    done = penstock("x-fail", "grouped")
    assert (done.returncode, done.stderr) == (3, "penstock: from a nursery\n")


def test_a_bug_is_one_line_and_its_traceback_is_shown_on_demand_only(penstock: Penstock) -> None:
    done = penstock("x-fail", "bug")
    line = "penstock: unexpected ValueError: a b redis://u:***@h; --debug shows the traceback\n"
    assert (done.returncode, done.stderr) == (1, line)
    for debugged in (
        penstock("x-fail", "bug", "--debug"),
        penstock("--debug", "x-fail", "bug"),
        penstock("x-fail", "bug", PENSTOCK_DEBUG="1"),
    ):
        assert debugged.returncode == 1
        assert debugged.stderr.startswith("Traceback")
        assert "plugin_of_tests.py" in debugged.stderr
        assert "s3cret" not in debugged.stderr


def test_a_broken_connection_is_not_taken_for_a_closed_output(penstock: Penstock) -> None:
    done = penstock("x-fail", "pipe")
    assert done.returncode == 1
    assert "unexpected BrokenPipeError" in done.stderr


def test_an_exit_code_of_a_command_is_kept(penstock: Penstock) -> None:
    assert penstock("x-fail", "exit").returncode == 7


@pytest.mark.parametrize(
    ("redirection", "code"), [("| head -n 1 >/dev/null", 141), (">&-", 0), (">/dev/full", 1), ("2>&-", 2)]
)
def test_an_output_without_reader_is_no_traceback(penstock: Penstock, redirection: str, code: int) -> None:
    """A pager that was closed ends the command quietly; a full disk is told."""
    how = {"| head -n 1 >/dev/null": "x-fail endless", "2>&-": "x-fail command"}.get(redirection, "x-show")
    done = subprocess.run(
        ["bash", "-c", f'"$@" {how} {redirection}; exit "${{PIPESTATUS[0]}}"', "-", *penstock.command],
        env=penstock.environ,
        cwd=penstock.directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("No space left" in done.stderr) is (redirection == ">/dev/full")


def test_an_interrupt_ends_quietly_with_130(penstock: Penstock) -> None:
    with subprocess.Popen(
        [*penstock.command, "x-fail", "interrupted"],
        env=penstock.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read().strip()) == (130, "")


def test_an_interrupt_in_a_nursery_is_one_too(penstock: Penstock) -> None:
    assert penstock("x-fail", "interrupted-grouped").returncode == 130
