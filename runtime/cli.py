"""The ``penstock`` command.

Its sub-commands are plug-ins: each is an entry point of the group ``penstock.commands`` that names a click command, so
that higher floors (and anybody's package) add theirs without this floor knowing them. A plug-in that cannot be imported
is named in one line, and takes no other down.

What every sub-command gets for nothing: ``--config`` and ``--debug``, before or after its name; one line on standard
error and an exit code for whatever goes wrong. Exit codes: 0 done, 1 failed, 2 wrong usage, settings or servers,
130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NoReturn, TypeVar

import attrs
import click
from attrs import define

from .masking import mask_text
from .printable import printable
from .settings import SettingsError, find_file, load

__all__ = ["COMMANDS", "CommandError", "Invocation", "json_option", "load_settings", "main"]

COMMANDS = "penstock.commands"
"""The entry point group of the sub-commands."""

FAILED, USAGE, INTERRUPTED, READER_GONE = 1, 2, 130, 141

T = TypeVar("T", bound=attrs.AttrsInstance)
F = TypeVar("F", bound=Callable[..., Any])


class CommandError(Exception):
    """Why a command failed, in one line that says what to do about it.

    Attributes:
        exit_code: 1, or 2 where settings, arguments or unreachable servers are the reason.
    """

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@define
class Invocation:
    """What was said on the command line to all commands alike.

    Attributes:
        config: the file that ``--config`` names, or None.
        debug: whether tracebacks are wanted.
    """

    config: str | None = None
    debug: bool = False


def load_settings(cls: type[T]) -> T:
    """The settings of this invocation, from its ``--config`` and the environment. For use inside a command.

    Raises:
        SettingsError: see `settings.load`; left to itself it ends the command with exit code 2.
    """
    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    return load(cls, file=find_file(invocation.config, os.environ), environ=os.environ)


def json_option(command: F) -> F:
    """Decorator: ``--json``, passed on as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, for scripts.")(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; never lets a traceback through unless ``--debug`` asks for it."""
    invocation = Invocation(debug=bool(os.environ.get("PENSTOCK_DEBUG")))
    try:
        code = _cli.main(args=arguments, prog_name="penstock", obj=invocation, standalone_mode=False) or 0
        code = code if isinstance(code, int) else 0
        _flush_output()
    except BaseException as error:  # noqa: BLE001 - the outermost frame: from here there is only the exit code
        code = _report(error, invocation)
    sys.exit(code)


# Failures ------------------------------------------------------------------------------------------------------------


def _report(error: BaseException, invocation: Invocation) -> int:
    """Say what went wrong, on one line, and give the exit code."""
    leaf = _most_telling(error)
    if isinstance(leaf, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(leaf, SystemExit):
        return leaf.code if isinstance(leaf.code, int) else FAILED
    if isinstance(leaf, click.exceptions.Exit):
        return leaf.exit_code
    if isinstance(leaf, BrokenPipeError) and _reader_is_gone():
        _discard_output()
        return READER_GONE
    for handler in logging.getLogger().handlers:
        handler.flush()  # what the log says of it stands before the last word
    if isinstance(leaf, click.exceptions.NoArgsIsHelpError):
        leaf.show()
        return leaf.exit_code
    if invocation.debug:
        _say(mask_text("".join(traceback.format_exception(error))).rstrip())
    message, code = _verdict(leaf)
    _say(f"penstock: {printable(' '.join(mask_text(message).split()))}")
    return code


def _most_telling(error: BaseException) -> BaseException:
    """The one error to report of a group: who interrupted, else what we have a text of our own for, else the first."""
    leaves = list(_leaves(error))
    for kinds in ((KeyboardInterrupt, click.Abort), (SettingsError, CommandError, click.ClickException)):
        for leaf in leaves:
            if isinstance(leaf, kinds):
                return leaf
    first = leaves[0]
    return first.error if isinstance(first, _BrokenPipe) else first


def _verdict(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SettingsError):
        return str(error), USAGE
    if isinstance(error, CommandError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "penstock"
        return f"{error.format_message().rstrip('.')}. See '{where} --help'.", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    return f"unexpected {_described(error)}; --debug shows the traceback", FAILED


def _described(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error's type
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside of the groups that trio's nurseries make."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _say(line: str) -> None:
    try:
        click.echo(line, err=True)
    except (OSError, ValueError):  # standard error is gone as well: the exit code has to do
        _discard_output()


def _reader_is_gone() -> bool:
    """Whether it is our output that broke, and not some connection to a server."""
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # errors are reported even if nothing is asked for
            if any(events & select.POLLERR for _, events in poll.poll(0)):
                return True
        except (OSError, ValueError, AttributeError):
            continue
    return False


def _flush_output() -> None:
    """Find out now, not in the interpreter's last breath, that the output has no reader."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _discard_output() -> None:
    """Let what is still buffered go nowhere; otherwise Python complains of it while it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue


# Sub-commands --------------------------------------------------------------------------------------------------------


class _BrokenPipe(Exception):
    """Carries a broken pipe past click, which would turn any, also a server connection's, into a silent exit."""

    def __init__(self, error: BrokenPipeError) -> None:
        super().__init__(error)
        self.error = error


class _Plugins(click.Group):
    """A group whose commands are entry points, each imported when it is needed.

    ``--help`` needs all of them: it shows what each says of itself, or why it cannot be loaded.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _BrokenPipe(error) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entries()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _entries().get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        try:
            command = _load(entry)
        except Exception as error:  # noqa: BLE001 - a plug-in's import may raise anything
            return _broken(cmd_name, entry, error)
        if not isinstance(command, click.Command):
            return _broken(cmd_name, entry, TypeError("it is no click command"))
        _add_common_options(command)
        return command


def _load(entry: metadata.EntryPoint) -> object:
    """The plug-in. Modules leave no garbage, and looking for some is a sixth of the time that an import takes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return entry.load()
    finally:
        if collects:
            gc.enable()


def _entries() -> dict[str, metadata.EntryPoint]:
    """The plug-ins by name. Of two with one name ours is taken: nobody's package replaces ``penstock run``."""
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=COMMANDS):
        if entry.name not in found or entry.module.split(".")[0] == "penstock":
            found[entry.name] = entry
    return found


def _broken(name: str, entry: metadata.EntryPoint, error: Exception) -> click.Command:
    """A command that says, whatever it is given, why it is none."""
    message = f"the command {name!r} ({entry.value}) cannot be loaded: {_described(error)}"

    def fail() -> NoReturn:
        raise CommandError(message) from error

    return click.Command(
        name,
        callback=fail,
        short_help=f"(cannot be loaded: {_described(error)})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )


def _add_common_options(command: click.Command) -> None:
    """Let ``penstock run --config FILE`` mean ``penstock --config FILE run``; once, however often it is loaded."""
    names = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _common_options() if names.isdisjoint(option.opts)]
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_common_options(below)


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            type=click.Path(dir_okay=False),
            expose_value=False,
            callback=_take_config,
            help="The settings file. Default: $PENSTOCK_CONFIG, else ./penstock.toml where there is one.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_take_debug, help="Show tracebacks of failures."
        ),
    ]


def _take_config(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Invocation).config = value


def _take_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).debug = True


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    python = ".".join(str(part) for part in sys.version_info[:3])
    click.echo(f"penstock {metadata.version('penstock')} (Python {python}, trio {metadata.version('trio')})")
    ctx.exit()


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_cli = _Plugins(
    "penstock",
    help="A supervised event runtime: Redis Streams in, PostgreSQL effects exactly once.",
    params=[
        *_common_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show versions.",
        ),
    ],
    invoke_without_command=True,
    callback=_show_help,
    context_settings={"help_option_names": ["-h", "--help"]},
)
