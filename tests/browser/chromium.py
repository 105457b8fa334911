"""Chromium, driven over the DevTools protocol through a pair of pipes: no port, no further dependency."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# Chromium takes its orders from file descriptor 3 and answers on 4.
_SHIM = """
import fcntl, os, sys
take, give = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(take, 3); os.dup2(give, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """The path of Debian's Chromium, or of one with another name."""
    return next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


class BrowserError(Exception):
    """Chromium refused an order, or a script in the page threw."""


class Browser:
    """A running Chromium; made by `launch`."""

    def __init__(self, orders: trio.lowlevel.FdStream, answers: trio.lowlevel.FdStream) -> None:
        self._orders = orders
        self._answers = answers
        self._lock = trio.Lock()
        self._number = 0
        self._waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def open(self, url: str, *, width: int = 1360, height: int = 900, dark: bool = False) -> Page:
        """A new page at `url`, its document read; its event streams may go on for ever."""
        target = (await self.order("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.order("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.order(f"{domain}.enable")
        await page.resize(width, height)
        await page.look(dark=dark)
        await page.order("Page.navigate", url=url)
        with trio.fail_after(30):
            await page.read.wait()
        return page

    async def order(self, method: str, /, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one order and wait for its result; raises `BrowserError`."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = send
        with trio.fail_after(30):
            async with self._lock:
                await self._orders.send_all(json.dumps(message).encode() + b"\0")
            answer = await receive.receive()
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    async def listen(self) -> None:
        """Hand out what Chromium says, until it ends."""
        buffer = bytearray()
        async for data in self._answers:
            buffer += data
            while (end := buffer.find(b"\0")) >= 0:
                message = json.loads(buffer[:end])
                del buffer[: end + 1]
                if "id" in message:
                    self._waiting.pop(message["id"]).send_nowait(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].hear(message["method"], message["params"])


class Page:
    """One page.

    Attributes:
        complaints: what the page's scripts, its content security policy and its network complained of.
        requested: the URLs that it asked for.
        read: set when its document has been read, and its deferred scripts have run.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.read = trio.Event()

    def hear(self, event: str, about: dict[str, Any]) -> None:
        """Take note of what happened in the page."""
        if event == "Page.domContentEventFired":
            self.read.set()
        elif event == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.complaints.append(about["entry"]["text"])

    async def order(self, method: str, **parameters: Any) -> dict[str, Any]:
        """An order to this page."""
        return await self._browser.order(method, self._session, **parameters)

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = await self.order("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def wait_until(self, script: str, within: float = 15.0) -> None:
        """Wait until a JavaScript expression is true; looks after each change of the document."""
        watch = (
            "new Promise(done => { const look = () => { if (" + script + ") { clearInterval(timer); done(true) } };"
            "const timer = setInterval(look, 50); look() })"
        )
        try:
            with trio.fail_after(within):
                await self.evaluate(watch)
        except trio.TooSlowError:
            seen = await self.text("body")
            raise AssertionError(f"not within {within} s: {script}\nthe page says:\n{seen}") from None

    async def text(self, selector: str) -> str:
        """The visible text of the first element that `selector` finds."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def resize(self, width: int, height: int) -> None:
        """Give the window a size in CSS pixels."""
        await self.order(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def look(self, *, dark: bool) -> None:
        """What the system prefers: dark or light."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.order("Emulation.setEmulatedMedia", features=scheme)

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = await self.order("Page.captureScreenshot", captureBeyondViewport=True)
        await trio.Path(path).write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def launch(executable: str, profile: Path) -> AsyncIterator[Browser]:
    """A browser with a profile of its own, ended with the block."""
    take, orders = os.pipe()
    answers, give = os.pipe()
    shim = [sys.executable, "-c", _SHIM, str(take), str(give)]
    process = await trio.lowlevel.open_process(
        [*shim, executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(take, give),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(take)
    os.close(give)
    try:
        async with trio.lowlevel.FdStream(orders) as out, trio.lowlevel.FdStream(answers) as back:
            async with trio.open_nursery() as nursery:
                browser = Browser(out, back)
                nursery.start_soon(browser.listen)
                yield browser
                nursery.cancel_scope.cancel()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group is ours: its session was made for it
        with trio.CancelScope(shield=True):
            await process.wait()
