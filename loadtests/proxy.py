"""A TCP proxy on loopback whose other side can be made to fail: to deny, to be slow, to hang, to be away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SLOW_S: Final = 2.0
"""How late an answer begins when the other side is slow. What was asked for is done at once all the same."""
_CHUNK_BYTES: Final = 65_536
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Mode(StrEnum):
    """What the other side does."""

    PASS = "passes"  # noqa: S105 - no password
    DENY = "denies"
    SLOW = "slow"
    HANG = "hangs"
    AWAY = "away"


class Proxy:
    """Passes connections on, byte for byte, as long as nothing else is asked of it."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]], denial: bytes = b"") -> None:
        """Take a port and refuse connections until ``switch``.

        Args:
            connect: opens a connection to the other side.
            denial: the HTTP answer to every request where it denies, see ``denial``.
        """
        self._connect, self._denial = connect, denial
        self._mode = Mode.AWAY
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        # Bound and never listening: it keeps the port from others while connections are refused.
        self._place = _bound(0)
        self.port = int(self._place.getsockname()[1])

    async def switch(self, mode: Mode) -> None:
        """From now on; connections that are open break off."""
        self._mode = mode
        if self._listener:
            self._listener.close()
            self._listener = None
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        if mode != Mode.AWAY:
            self._listener = await asyncio.start_server(self._accept, sock=_bound(self.port))

    async def close(self) -> None:
        """End it."""
        await self.switch(Mode.AWAY)
        self._place.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if self._mode == Mode.HANG:
                    await _swallow(reader)
                elif self._mode == Mode.DENY:
                    await _swallow_request(reader)
                    writer.write(self._denial)
                    await writer.drain()
                else:
                    await self._relay(reader, writer, SLOW_S if self._mode == Mode.SLOW else 0.0)
        finally:
            writer.close()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
    ) -> None:
        answers, asks = await self._connect()
        asked = 0.0
        clock = asyncio.get_running_loop().time

        async def onwards() -> None:
            nonlocal asked
            while data := await reader.read(_CHUNK_BYTES):
                asked = clock()
                asks.write(data)
                await asks.drain()

        async def back() -> None:
            while data := await answers.read(_CHUNK_BYTES):
                await asyncio.sleep(asked + delay_s - clock())
                writer.write(data)
                await writer.drain()

        both = [asyncio.create_task(onwards()), asyncio.create_task(back())]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            asks.close()


def denial(status: str, media_type: str, body: str) -> bytes:
    """A whole HTTP/1.1 answer, after which the connection ends; ``status`` as in ``403 Forbidden``."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body.encode())}"
    return f"{head}\r\nConnection: close\r\n\r\n{body}".encode()


def _bound(port: int) -> socket.socket:
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    place.bind(("127.0.0.1", port))
    return place


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK_BYTES):
        pass


async def _swallow_request(reader: asyncio.StreamReader) -> None:
    """One HTTP request with a length, its body included: whoever still sends would not read the answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    if length := _LENGTH.search(head):
        await reader.readexactly(int(length[1]))
