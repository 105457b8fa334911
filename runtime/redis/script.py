"""`Script`: a Lua script that is sent once and then called by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions

from .replies import reply_text

if TYPE_CHECKING:
    from .cluster.pipeline import ClusterPipeline
    from .commands import Commands
    from .pipeline import Pipeline
    from .transaction import Transaction

__all__ = ["Script", "digest_of"]

_UNKNOWN: Final = "NOSCRIPT No matching script"
"""How Redis and Valkey themselves word it."""


class Script:
    """A Lua script, callable like a function. Made by `register_script`; needs no connection to be made.

    Attributes:
        text: the source.
        sha: its SHA-1, the name under which servers cache it.
    """

    def __init__(self, client: Commands, text: str | bytes) -> None:
        self._client = client
        self.text = text
        self.sha = digest_of(text)

    def __repr__(self) -> str:
        return f"<Script {self.sha}>"

    async def __call__(self, keys: Sequence[Any] = (), args: Iterable[Any] = (), client: Commands | None = None) -> Any:
        """EVALSHA; when the server does not know the script (a restart, a failover), EVAL, which teaches it.

        The server's NOSCRIPT means that nothing ran, so the second attempt is safe. `client` takes the place of the one
        that registered the script; on a pipeline use `queue`. Raises what the command raises.
        """
        runner = self._client if client is None else client
        words = [*keys, *args]
        try:
            return await runner.execute_command("EVALSHA", self.sha, len(keys), *words)
        except redis.exceptions.NoScriptError as error:
            if not reply_text(error).startswith(_UNKNOWN):  # the script's own words, and it has run
                raise
            return await runner.execute_command("EVAL", self.text, len(keys), *words)

    def queue(
        self, pipeline: Pipeline | ClusterPipeline | Transaction, keys: Sequence[Any] = (), args: Iterable[Any] = ()
    ) -> None:
        """Add a call to a pipeline: the text with the first call of a burst, the digest with the others."""
        known = pipeline.remember_script(self.sha, keys)
        verb, script = ("EVALSHA", self.sha) if known else ("EVAL", self.text)
        pipeline.execute_command(verb, script, len(keys), *keys, *args)


def digest_of(text: str | bytes) -> str:
    """The name under which servers know a script."""
    return hashlib.sha1(text.encode() if isinstance(text, str) else text, usedforsecurity=False).hexdigest()
