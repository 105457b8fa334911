"""The system that a command is about: named on the command line or by the settings, or made of the settings alone."""

from __future__ import annotations

from types import ModuleType

from ...actors.access import ACCESS_STREAM, event_system
from ...actors.configuring import configured
from ...actors.system import DeclarationError, System
from ...runtime.cli import CommandError
from ...runtime.import_string import ImportStringError
from ...runtime.import_string import load_object as load
from ..configuration import Settings

__all__ = ["declared_system", "load_object", "place_of"]

MADE = "penstock"
"""The name of a system that is made of settings alone, unless they name it."""


def declared_system(place: str | None, settings: Settings) -> System:
    """The system that `place` names, else that the settings name or make; with all that is set of its streams.

    Settings that name none and have streams make one of these alone. Without streams it is the access-event system, and
    so it is where they have its stream, beside others.

    Raises:
        CommandError: there is no such system, or what is set does not go with it; exit code 2.
    """
    place = place_of(place, settings)
    found = _made_of(settings) if place is None else load_object(place)[1]
    if not isinstance(found, System):
        held = "nothing" if found is None else f"a {type(found).__name__}"
        raise CommandError(f"{place} is {held}, not a penstock System", 2)
    try:
        made = configured(_with_named(found, settings) if place is None else found, settings)
        made.check()
    except DeclarationError as error:
        raise CommandError(str(error), 2) from error
    return made


def place_of(place: str | None, settings: Settings) -> str | None:
    """The import string of the system: the command line's, or the settings'; None if it is made of these alone.

    Raises:
        CommandError: both a system that stands in code and what only one made of settings can have are asked for.
    """
    place = place or settings.system
    if place is not None:
        for key in ("name", "migrations"):
            if getattr(settings, key) is not None:
                raise CommandError(f"{key} is of a system that is made of settings alone; {place} has its own", 2)
    return place


def _made_of(settings: Settings) -> System:
    """The system that settings make which name none, as it is before what they set of its streams.

    Raises:
        CommandError: they name what makes none; exit code 2.
    """
    if not settings.streams or ACCESS_STREAM in settings.streams:
        for key in ("name", "migrations"):
            if getattr(settings, key) is not None:
                raise CommandError(f"{key} is of a system that is made of settings alone, and they make none", 2)
        return event_system
    if settings.migrations is not None and not settings.migrations.is_dir():
        raise CommandError(f"migrations: there is no directory {settings.migrations}", 2)
    return System(settings.name or MADE, migrations=settings.migrations)


def _with_named(system: System, settings: Settings) -> System:
    """The system with every stream that the settings name: where they alone make it, none has to say what it is for."""
    made = system.with_streams(system.streams)
    for key in settings.streams:
        if key not in made.streams:
            made.stream(key)
    return made


def load_object(place: str) -> tuple[ModuleType, object]:
    """See `penstock.runtime.import_string`; an import string that names nothing ends the command with exit code 2."""
    try:
        return load(place)
    except ImportStringError as error:
        raise CommandError(str(error), 2) from error
