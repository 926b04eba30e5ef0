"""A real HTTP server on this machine, for the tests that need a socket and no Ray."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def serving(make: Callable[[], ASGIApp]) -> Iterator[str]:
    """Serve what ``make`` makes inside the loop of a thread of its own; the URL."""
    servers: list[uvicorn.Server] = []

    async def serve(listener: socket.socket) -> None:
        servers.append(uvicorn.Server(uvicorn.Config(make(), ws="none", log_config=None)))
        await servers[0].serve([listener])

    # Listening from here on: who connects before the server has started waits.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(serve(listener),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for server in servers:
                server.should_exit = True
            thread.join(30)
