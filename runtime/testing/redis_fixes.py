"""Commands on keys that fakeredis lacks or answers differently from a real server."""

from __future__ import annotations

from typing import Any, Final

from ._fakeredis import Signature, signature

__all__ = ["FIXED_COMMANDS", "FixedCommands", "correct"]


_TEXTS: Final = {
    "ERR BUSYGROUP Consumer Group name already exists": "BUSYGROUP Consumer Group name already exists",
}


def correct(text: str) -> str:
    """An error line of fakeredis as a real server writes it."""
    return _TEXTS.get(text, text)


class FixedCommands:
    """The commands, for a session."""

    _script_resp: Any

    def touch(self, *keys: Any) -> int:
        return sum(1 for key in keys if key)

    def eval_ro(self, script: bytes, numkeys: int, *words: bytes) -> Any:
        return self._read_only_script(lambda: self.eval(script, numkeys, *words))  # type: ignore[attr-defined]

    def evalsha_ro(self, sha1: bytes, numkeys: int, *words: bytes) -> Any:
        return self._read_only_script(lambda: self.evalsha(sha1, numkeys, *words))  # type: ignore[attr-defined]

    def _keyspace_notifications(self, command_items: Any, event: bytes) -> None:
        """Off, as by default."""

    def _subkey_notifications(self, command_items: Any) -> None:
        """Off, as by default."""


FIXED_COMMANDS: Final[dict[str, Signature]] = {
    "touch": signature("touch", "touch", keys=1, more_keys=True),
}
"""How fakeredis is to call those that it does not have."""
