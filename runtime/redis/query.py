"""Options in the query of a Redis URL: redis-py's names and our own, as the fields of an options class."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import parse_qsl

from .errors import InvalidRedisUrl

__all__ = ["read_query"]


def read_query(query: str, known: Mapping[str, str]) -> dict[str, Any]:
    """The fields that a query gives, as values of their types.

    Args:
        query: `name=value&…`, percent-encoded.
        known: fields that may be given: name -> type as in its annotation (`"float"`, `"str | None"`).

    Raises InvalidRedisUrl, which names the option and shows no value of it (it may be a secret).
    """
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        ours, value = _read(name, text, known)
        if ours is None:
            continue
        if ours in values:
            raise InvalidRedisUrl(f"Redis URL: option {name!r} is given twice")
        values[ours] = value
    return values


def _read(name: str, text: str, known: Mapping[str, str]) -> tuple[str | None, Any]:
    """The field and its value; no field for what changes nothing."""
    if name in _REFUSED:
        raise InvalidRedisUrl(f"Redis URL: option {name!r} has no meaning here: {_REFUSED[name]}")
    if name in _FIXED:
        wanted, advice = _FIXED[name]
        if text.lower() not in wanted:
            raise InvalidRedisUrl(f"Redis URL: option {name!r} cannot be changed: {advice}")
        return None, None
    ours = _RENAMED.get(name, name)
    if ours not in known:
        near = get_close_matches(name, [*known, *_RENAMED], n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidRedisUrl(f"Redis URL: unknown option {name!r}{meant}")
    kind = known[ours].removesuffix(" | None")
    convert = _SPECIAL.get(name) or _CONVERTERS[kind]
    try:
        return ours, convert(text)
    except ValueError:
        raise InvalidRedisUrl(f"Redis URL: option {name!r} is not {_WORDS.get(name, f'of type {kind}')}") from None


_RENAMED: Final = {
    "socket_timeout": "response_timeout",
    "socket_connect_timeout": "connect_timeout",
    "socket_keepalive": "tcp_keepalive",
    "ssl_cert_reqs": "tls_verify",
    "ssl_ca_certs": "tls_ca_file",
    "ssl_ca_path": "tls_ca_path",
    "ssl_ca_data": "tls_ca_data",
    "ssl_certfile": "tls_certificate_file",
    "ssl_keyfile": "tls_key_file",
    "ssl_password": "tls_key_password",
    "ssl_check_hostname": "tls_check_hostname",
    "ssl_min_version": "tls_min_version",
    "ssl_ciphers": "tls_ciphers",
}
"""redis-py's names -> ours, where they differ."""

_CONTEXT: Final = "make an ssl.SSLContext and give it as RedisOptions.tls_context"
_ONE_CONNECTION: Final = "one connection carries the commands of all tasks; max_blocking bounds those that block"
_REFUSED: Final = {
    "host": "write it before the path",
    "port": "write it before the path",
    "path": "write unix:///path",
    "tls": "write rediss://",
    "tls_context": "give it to RedisOptions",
    "credential_provider": "give it to RedisOptions",
    "max_connections": _ONE_CONNECTION,
    "single_connection_client": _ONE_CONNECTION,
    "auto_close_connection_pool": _ONE_CONNECTION,
    "timeout": "there is no pool to wait for; bound a call with trio.fail_after",
    "retry_on_timeout": "use retry_for",
    "retry_on_error": "use retry_for",
    "retry": "use retry_for",
    "socket_read_size": "the link reads what there is",
    "socket_keepalive_options": "set the kernel's defaults, or open the stream yourself (Redis(connect=...))",
    "socket_type": "open the stream yourself (Redis(connect=...))",
    "lib_name": "nothing is told to the server but client_name",
    "lib_version": "nothing is told to the server but client_name",
    "driver_info": "nothing is told to the server but client_name",
    "ssl_include_verify_flags": _CONTEXT,
    "ssl_exclude_verify_flags": _CONTEXT,
    "ssl_validate_ocsp": _CONTEXT,
    "ssl_validate_ocsp_stapled": _CONTEXT,
    "ssl_ocsp_context": _CONTEXT,
    "ssl_ocsp_expected_cert": _CONTEXT,
}
"""What somebody who knows redis-py might write, and what to do instead."""

_TRUE: Final = frozenset({"1", "true", "yes", "on", "t", "y"})
_FALSE: Final = frozenset({"0", "false", "no", "off", "f", "n"})

_FIXED: Final[dict[str, tuple[frozenset[str], str]]] = {
    "encoding": (frozenset({"utf-8", "utf8"}), "text is UTF-8; leave decode_responses off for anything else"),
    "encoding_errors": (frozenset({"strict"}), "leave decode_responses off for what may not be UTF-8"),
    "legacy_responses": (_TRUE, "replies have redis-py's usual shapes"),
}
"""Accepted as long as they ask for what is done anyway."""


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _verify(text: str) -> bool:
    """A server always shows a certificate, so "optional" is "required" for a client."""
    if text.lower() not in ("required", "optional", "none"):
        raise ValueError
    return text.lower() != "none"


def _tls_version(text: str) -> ssl.TLSVersion:
    """`1.2`, `TLSv1.2`, or redis-py's number (771)."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        number = version.name.removeprefix("TLSv").replace("_", ".")
        if text.removeprefix("TLSv").replace("_", ".") == number or text == str(version.value):
            return version
    raise ValueError


_CONVERTERS: Final[dict[str, Callable[[str], Any]]] = {
    "str": _text,
    "int": int,
    "float": float,
    "bool": _boolean,
    "Literal[2, 3]": int,
    "ssl.TLSVersion": _tls_version,
}
_SPECIAL: Final[dict[str, Callable[[str], Any]]] = {"ssl_cert_reqs": _verify}
_WORDS: Final = {
    "ssl_cert_reqs": "one of required, optional, none",
    "ssl_min_version": "one of 1.2, 1.3",
    "tls_min_version": "one of 1.2, 1.3",
    "protocol": "one of 2, 3",
}
