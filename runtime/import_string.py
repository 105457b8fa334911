"""Import strings: what ``module:attribute`` or ``file.py:attribute`` names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["ImportStringError", "load_object"]


class ImportStringError(ValueError):
    """An import string that names nothing; the text says which half of it is at fault."""


def load_object(place: str) -> tuple[ModuleType, object]:
    """The module, which is imported, and what `place` names in it; None if there is no attribute of that name.

    A file is imported by its name from its directory, which stays on ``sys.path``, so that it may import its
    neighbours; a module is looked for in the working directory first. Blocks, and runs the module.

    Raises:
        ImportStringError: there is no such module or file, another module of the file's name is imported already, or
            `place` is no name of this form.
        Exception: what the module raises.
    """
    name, separator, attribute = place.rpartition(":")
    if not separator or not name or not attribute:
        raise ImportStringError(f"{place!r} is not of the form module:name or file.py:name")
    try:
        module = _from_file(Path(name)) if name.endswith(".py") else _from_module(name)
    except SystemExit as error:
        raise ImportStringError(
            f"{name} ends the program when it is imported; what is to be done only when it is run stands below "
            'if __name__ == "__main__":'
        ) from error
    return module, getattr(module, attribute, None)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportStringError(f"there is no file {path}")
    path = path.resolve()
    _look_in(str(path.parent))
    module = importlib.import_module(path.stem)
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        other = found or "a module of Python's own"
        raise ImportStringError(f"{path} cannot be imported as {path.stem!r}, for that is {other}; rename the file")
    return module


def _from_module(name: str) -> ModuleType:
    if name.startswith("."):
        raise ImportStringError(f"{name!r} is no module's name; a file is named with its .py")
    _look_in("")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ImportStringError(f"there is no module {name!r}") from error
        raise


def _look_in(directory: str) -> None:
    if sys.path[:1] != [directory]:
        if directory in sys.path:
            sys.path.remove(directory)
        sys.path.insert(0, directory)
