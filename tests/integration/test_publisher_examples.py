"""The publisher's examples against a real system, which is killed meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, free_port, until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def shop() -> Iterator[Installation]:
    """The tutorial's shop, running; the tests tell their orders by a prefix."""
    directory = Path(tempfile.mkdtemp(prefix="penstock-it-"))
    directory.chmod(0o755)
    made = Installation(directory, arguments=("run", f"{EXAMPLES / 'shop.py'}:system"))
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def payments(shop: Installation, prefix: str) -> list[str]:
    return [str(row[0]) for row in shop.sql("select order_id from payment where order_id like %s", f"{prefix}-%%")]


@contextmanager
def service(shop: Installation, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The FastAPI example as a service of its own, on asyncio."""
    environment = {
        **os.environ,
        "SHOP_URL": f"http://127.0.0.1:{shop.port}",
        "KEPT_EVENTS": str(shop.directory / "kept.ndjson"),
    }
    command = [sys.executable, "-m", "hypercorn", "publisher_fastapi:app", "--bind", f"127.0.0.1:{port}"]
    with (shop.directory / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--worker-class", "asyncio"], cwd=EXAMPLES, env=environment, stdout=log, stderr=log
        )
        try:
            until(lambda: _answers(process, port, shop), 60, "the service answers")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _answers(process: subprocess.Popen[bytes], port: int, shop: Installation) -> bool:
    assert process.poll() is None, (shop.directory / "service.log").read_text()[-2000:]
    try:
        return post(port, "/nowhere", {})[0] == 404
    except OSError:
        return False


def post(port: int, path: str, value: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_the_trio_example_has_a_thousand_orders_accepted_and_each_is_paid_once(shop: Installation) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "publisher_trio.py")],
        env={**os.environ, "SHOP_URL": f"http://127.0.0.1:{shop.port}"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    # Where this machine kept Redis from answering for 50 ms the outbox has it.
    assert first in ("accepted: redis", "accepted: outbox")
    assert second.startswith("order 7: data.price")
    assert third == "1000 accepted, 1 rejected"
    until(lambda: len(payments(shop, "trio")) == 1000, 30, "1000 payments")
    assert shop.sql("select count(*) from penstock_dead_letter") == [(0,)]


def test_the_fastapi_example_loses_and_doubles_nothing_while_the_server_is_killed(shop: Installation) -> None:
    port = free_port()
    with service(shop, port):
        started = threading.Semaphore(0)

        def place(number: int) -> int:
            started.release()
            order = {"order_id": f"api-{number}", "price": 1.5}
            while True:
                status, answer = post(port, "/orders", order)
                if status != 503:
                    return status
                order["event_id"] = answer["detail"]["eventId"]

        with ThreadPoolExecutor(8) as pool:
            placed = [pool.submit(place, number) for number in range(600)]
            for _ in range(100):
                started.acquire()
            shop.kill()
            shop.start()
            assert {each.result(90) for each in placed} == {202}
    until(lambda: len(payments(shop, "api")) == 600, 30, "600 payments")
    assert shop.sql("select count(*) from penstock_dead_letter") == [(0,)]


def test_the_fastapi_example_keeps_what_it_could_not_send_and_sends_it_at_its_next_start(shop: Installation) -> None:
    port = free_port()
    with service(shop, port):
        shop.kill()
        for number in range(20):
            assert post(port, "/orders/later", {"order_id": f"later-{number}", "price": 1.5})[0] == 202
    kept = shop.directory / "kept.ndjson"
    assert len(kept.read_text().splitlines()) == 20
    shop.start()
    with service(shop, port):
        until(lambda: len(payments(shop, "later")) == 20, 30, "20 payments")
    assert not kept.exists()
