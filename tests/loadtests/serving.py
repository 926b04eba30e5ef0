"""A small server in a thread of its own, for a load that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests.sending import Target


@contextmanager
def scoring(answer: Callable[[web.Request], Awaitable[web.Response]]) -> Iterator[Target]:
    """Answer ``POST /v1/scores`` with ``answer``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    app = web.Application()
    app.router.add_post("/v1/scores", answer)
    server = TestServer(app)
    asyncio.run_coroutine_threadsafe(server.start_server(), loop).result(10)
    try:
        yield Target(str(server.make_url("")).rstrip("/"), "key")
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
