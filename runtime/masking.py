"""Hiding secrets: in URLs, in running text, and in whole values on their way to a log or a record.

Everything here is pure, never raises, and errs on the side of hiding.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

__all__ = ["MASK", "is_secret_key", "mask", "mask_text", "mask_url"]

MASK = "***"
"""What stands in a secret's place."""

_DEEPEST = 8
"""Nested values deeper than this are hidden as a whole: a log line is no place for them, and a cycle must end."""

_SECRET_WORDS = frozenset(
    {
        "apikey",
        "authorization",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "passphrase",
        "passwd",
        "password",
        "passwords",
        "pgpassword",
        "pwd",
        "secret",
        "secrets",
        "sslpassword",
        "token",
    }
)
_SECRET_PAIRS = frozenset({("access", "key"), ("api", "key"), ("private", "key"), ("signing", "key")})

# `accessToken`, `X-Api-Key` and `set_cookie` are words joined; a joint is a non-letter or a hump.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# A URL as it stands in a text ends at a blank or a quote, unless the quote is one of a password: before an `@`, and not
# before what follows a string in JSON or a repr. The match consumes it whole, so that the search stays linear in texts
# made to be slow; where its password is, `_mask_one_url` decides.
_URL = re.compile(
    r"""(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s'"<>]|['"](?=@|[^\s'"<>,:;)\]}][^\s'"<>]*['"]?@))+"""
)
_PORT = re.compile(r"\d{1,5}(?:[/?#,]|$)")
_QUERY_VALUE = re.compile(r"(?P<head>[?&;](?P<key>[A-Za-z0-9_.%-]+)=)(?P<value>[^\s&;'\"<>#]*)")
_PAIR = re.compile(  # "password": "…" in JSON, 'password': '…' in a repr
    r"""(?P<head>(?P<quote>["'])(?P<key>[^"'\\\s]{1,64})(?P=quote)\s*:\s*)(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
)
_ASSIGNED = re.compile(  # libpq's "host=… password=…"
    r"(?i)(?P<head>\b(?:password|passwd|pgpassword|sslpassword)\s*=\s*)(?P<value>'(?:[^'\\]|\\.)*'|[^\s&;,)]+)"
)
_LOGIN = re.compile(r":[^\s:/@'\"]+(?=@)")  # user:password@ in what was meant to be a URL
# The same where the whole text is a URL, or was meant to be one: it ends at no blank and no quote.
_WHOLE_QUERY_VALUE = re.compile(r"(?P<head>[?&;](?P<key>[A-Za-z0-9_.%-]+)=)(?P<value>[^&;#]*)")
_WHOLE_LOGIN = re.compile(r":[^:/]+(?=@)")
_BEARER = re.compile(r"(?i)(?P<head>\b(?:bearer|basic)\s+)(?P<value>[A-Za-z0-9._~+/=-]{8,})")


def is_secret_key(key: str) -> bool:
    """Whether a value under this key is to be hidden, whatever it is.

    Looks at whole words, so that ``accessToken``, ``X-Api-Key`` and ``Set-Cookie`` are secrets and ``tokenizer`` or
    ``monkey`` are not.
    """
    return _is_secret_name(key) if len(key) <= _NAME_LIMIT else _has_secret_word(key)


def _has_secret_word(key: str) -> bool:
    words = [word.lower() for word in _WORD.findall(key)]
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    return any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


# The same few names come with every request. What is longer is no name, and must not fill the memory.
_NAME_LIMIT = 64
_is_secret_name = lru_cache(1024)(_has_secret_word)


def mask_url(url: str) -> str:
    """The URL with its password, and secrets in its query, replaced by ``***``; the rest is left as it is.

    Takes any text: forms with several hosts, and what is no URL at all, come back with the secrets in them hidden. All
    of it counts as one URL: what a driver takes for a password may hold blanks and quotes. In running text, which may
    hold several, that is for `mask_text`.
    """
    url = _mask_one_url(url) if "://" in url else _WHOLE_LOGIN.sub(f":{MASK}", url)
    return mask_text(_WHOLE_QUERY_VALUE.sub(_mask_pair, url))


def mask_text(text: str) -> str:
    """Running text with what is secret in it replaced by ``***``.

    Hidden are passwords in URLs and connection strings, secret query parameters, secret members of JSON that stands in
    the text, and credentials of an ``Authorization`` header.
    """
    if "://" in text:
        text = _URL.sub(lambda found: _mask_one_url(found[0]), text)
    if "@" in text:
        text = _LOGIN.sub(rf":{MASK}", text)
    if "=" in text:
        text = _QUERY_VALUE.sub(_mask_pair, text)
        text = _ASSIGNED.sub(_mask_value, text)
    if ":" in text:
        text = _PAIR.sub(_mask_pair, text)
    return _BEARER.sub(_mask_value, text)


def mask(value: Any, *, key: str = "", depth: int = 0) -> Any:
    """A value fit for a log: mappings and sequences are copied with their secrets hidden, other objects left alone.

    Args:
        value: anything; never changed in place.
        key: the name that it stands under; a secret one hides the value as a whole.
        depth: how deep the caller already is; see the module's limit.
    """
    if key and value is not None and is_secret_key(key) and not isinstance(value, bool):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return value
    if depth >= _DEEPEST:
        return MASK
    if isinstance(value, Mapping):
        return {name: mask(item, key=str(name), depth=depth + 1) for name, item in value.items()}
    return [mask(item, depth=depth + 1) for item in value]


def _mask_one_url(url: str) -> str:
    """Hide what stands between the first ``:`` of the user part and the last ``@``.

    The last, because people put unescaped ``@`` into passwords, and URL parsers take the last one too. Where the user
    part holds a slash it is none: that URL has no password, but one in its query may.
    """
    at, start = url.rfind("@"), url.find("://")
    while -1 < start < at:  # nothing is copied and nothing searched twice: a text may hold a million of them
        user = start + len("://")
        colon = url.find(":", user, at)
        if colon < 0:
            break
        if url.find("/", user, colon) < 0 and not _PORT.match(url, colon + 1, at):
            return f"{url[:colon]}:{MASK}{url[at:]}"
        start = url.find("://", user)
    return url


def _mask_value(found: re.Match[str]) -> str:
    return found["head"] + MASK


def _mask_pair(found: re.Match[str]) -> str:
    if not is_secret_key(unquote(found["key"])):
        return found[0]
    quote = found["value"][:1] if found["value"][:1] in ("'", '"') else ""
    return f"{found['head']}{quote}{MASK}{quote}"
