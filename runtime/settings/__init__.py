"""Settings: attrs classes filled from a TOML file and the environment, every mistake named where it stands.

A settings class is an attrs class; each field has a default, and a line in the class's ``Attributes:`` block. A field
that is itself a settings class is a *section*: a table of the file, a part of the variable's name::

    @frozen(kw_only=True)
    class Settings:
        '''Everything.

        Attributes:
            data_dir: where embedded servers keep their data.
            redis: the link to Redis.
        '''

        data_dir: Path = Path(".penstock")
        redis: RedisSettings = RedisSettings()

    settings = load(Settings, file=find_file(None, os.environ), environ=os.environ)

A field of the type ``dict[str, X]``, X a settings class, is a table of tables whose names are the user's,
``[streams."order-events"]``. They are set in the file alone.
"""

from __future__ import annotations

from ..masking import mask_url
from .loading import CONTROLS, ENV_PREFIX, PROFILES, SettingsError, find_file, load
from .reference import SettingDoc, describe, markdown
from .sections import LogSettings, PostgresSettings, RedisSettings, StartSettings
from .validators import above_zero, at_least, url_of, zero_or_more

__all__ = [
    "CONTROLS",
    "ENV_PREFIX",
    "PROFILES",
    "LogSettings",
    "PostgresSettings",
    "RedisSettings",
    "SettingDoc",
    "SettingsError",
    "StartSettings",
    "above_zero",
    "at_least",
    "describe",
    "find_file",
    "load",
    "markdown",
    "mask_url",
    "url_of",
    "zero_or_more",
]
