"""The web application: the routes, and what surrounds them."""

from __future__ import annotations

from functools import partial
from typing import cast

import trio
from quart import request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio

from .access import ASGI, METHOD_NAME, AccessRecorder, Scope
from .admin import admin
from .boundary import Boundary
from .entries import entries
from .entry_orders import entry_orders
from .health import health, live, tail, tree_events
from .hosts import AllowedHosts
from .ingest import ingest
from .ledger import ledger
from .letters import letters
from .live import LiveFeed
from .origin import refuse_other_hosts, refuse_other_sites, refuse_sockets_of_other_sites
from .page import page
from .problems import install
from .queues import queues
from .replays import replays
from .retention import retention
from .routes import routes_of
from .running import RunningSystem
from .settings import HttpSettings
from .streams import streams
from .websockets import WebSockets

__all__ = ["HttpApp", "create_app"]


class HttpApp(QuartTrio):
    """The application.

    Attributes:
        feed: what its live page is fed with; somebody has to run it (`LiveFeed.run`).
        draining: set when it is about to leave: streams of events, and WebSockets, end then.
    """

    feed: LiveFeed
    draining: trio.Event


def create_app(deployment: RunningSystem, settings: HttpSettings, *, draining: trio.Event | None = None) -> HttpApp:
    """The application that serves `deployment`. It starts nothing.

    Args:
        deployment: the running system.
        settings: its limits; the addresses are the front end's.
        draining: set by the caller when the streams of events, and the WebSockets, are to end.
    """
    app = HttpApp(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    app.config["BODY_TIMEOUT"] = settings.body_timeout
    # Whoever serves files has browsers ask each time (they are sent what has changed): an update is to be seen.
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = 0
    # Redirects to the path with or without a slash would be made of the Host header, which is the client's.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.draining = trio.Event() if draining is None else draining
    app.feed = LiveFeed(deployment, settings.live_clients, app.draining)
    install(app)
    for routes in (
        health(deployment),
        live(app.feed),
        tree_events(deployment, settings, app.draining),
        tail(deployment, settings, app.draining),
        ingest(deployment, settings),
        admin(deployment),
        letters(deployment),
        ledger(deployment),
        streams(deployment),
        queues(deployment),
        entries(deployment),
        entry_orders(deployment),
        replays(deployment),
        retention(deployment),
        page(),
    ):
        app.register_blueprint(routes)
    _add_own(app, deployment)
    allowed = AllowedHosts.of(settings.allowed_hosts, settings.bind)
    app.before_request(_note_method_name)
    app.before_request(partial(_refuse_other_hosts, allowed))
    app.before_request(refuse_other_sites)
    app.before_websocket(_note_method_name_of_socket)
    app.before_websocket(partial(_refuse_sockets_for_other_hosts, allowed))
    app.before_websocket(refuse_sockets_of_other_sites)
    inside = cast("ASGI", app.asgi_app)
    boundary = Boundary(inside, WebSockets(inside, settings.topic_clients, app.draining))
    recorder = AccessRecorder(boundary, deployment, settings.capture_body_limit)
    app.asgi_app = recorder  # type: ignore[method-assign, assignment]
    return app


def _add_own(app: HttpApp, deployment: RunningSystem) -> None:
    """Serve the routes of the system's own. Raises ValueError for one that would hide one of ours, or another."""
    taken = {rule.rule: rule.endpoint for rule in app.url_map.iter_rules()}
    for made in routes_of(deployment):
        app.register_blueprint(made)
        for rule in app.url_map.iter_rules():
            if rule.endpoint.startswith(f"{made.name}.") and rule.rule in taken:
                raise ValueError(f"the route {rule.rule} of {made.name!r} is taken, by {taken[rule.rule]}")
        taken |= {rule.rule: rule.endpoint for rule in app.url_map.iter_rules()}


async def _refuse_other_hosts(allowed: AllowedHosts) -> None:
    refuse_other_hosts(request, allowed)


async def _refuse_sockets_for_other_hosts(allowed: AllowedHosts) -> None:
    refuse_other_hosts(websocket, allowed)


async def _note_method_name() -> None:
    _note(request)


async def _note_method_name_of_socket() -> None:
    _note(websocket)


def _note(asked: BaseRequestWebsocket) -> None:
    """Leave the name of the function that will answer where the access recorder finds it."""
    if asked.endpoint is not None:
        cast("Scope", asked.scope)[METHOD_NAME] = asked.endpoint.rpartition(".")[2]
