"""What the embedded servers have in common: leftovers go first, then it runs, and its errors name the way out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..processes import Log, ProcessSpec, Ready, Unreachable, run_command, run_process
from .errors import DataDirectoryError
from .leftovers import end_leftovers

if TYPE_CHECKING:
    from ..supervision.child import Child

__all__ = ["run_server", "run_tool"]


async def run_server(child: Child, spec: ProcessSpec, *, data: Path, sockets: Path, ready: Ready, log: Log) -> None:
    """Run the server `spec`, which works in the directory `data`, as `child`; see `run_process`.

    A server of an earlier run that still works there is stopped first. `sockets` is removed afterwards, if it is empty.

    Raises:
        LeftoverServer: the earlier one cannot be stopped.
        DataDirectoryError: the server's account cannot enter a directory that it needs.
        ProcessExited: it ended by itself.
        LaunchFailed: it could not be started.
    """
    await end_leftovers(spec.name, data, spec.stop, log)
    try:
        await run_process(child, spec, ready=ready, log=log)
    except Unreachable as error:
        raise _with_way_out(error) from error
    finally:
        _remove_if_empty(sockets)


async def run_tool(spec: ProcessSpec, *, log: Log) -> None:
    """Run a program to its end; see `run_command`. Raises DataDirectoryError as `run_server` does."""
    try:
        await run_command(spec, log=log)
    except Unreachable as error:
        raise _with_way_out(error) from error


def _remove_if_empty(path: Path) -> None:
    # One that holds data, or the socket of a server that had to be killed, is not empty and stays.
    with contextlib.suppress(OSError):
        path.rmdir()


def _with_way_out(error: Unreachable) -> DataDirectoryError:
    return DataDirectoryError(
        f"{error}, and this system does not let us grant it that alone (CAP_DAC_READ_SEARCH). Run penstock as a normal"
        " user, or choose a data directory elsewhere (PENSTOCK_DATA_DIR) and install penstock where others may read,"
        " or use servers of your own (PENSTOCK_REDIS_URL, PENSTOCK_POSTGRES_URL)"
    )
