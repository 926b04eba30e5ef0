"""The proxy between a client and a small server: what the client sees in each mode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests import proxy
from loadtests.proxy import Mode, Proxy, denial

BODY = bytes(range(256)) * 2048


def story(told: Callable[[Proxy, aiohttp.ClientSession, list[bytes]], Awaitable[None]]) -> None:
    """A proxy that passes, before a server that gives back what it is sent; and all that it was sent."""

    async def run() -> None:
        got: list[bytes] = []

        async def echo(request: web.Request) -> web.Response:
            got.append(await request.read())
            return web.Response(body=got[-1])

        app = web.Application()
        app.router.add_post("/", echo)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            behind = Proxy(
                lambda: asyncio.open_connection("127.0.0.1", server.port),
                denial("403 Forbidden", "application/xml", "<Code>AccessDenied</Code>"),
            )
            await behind.switch(Mode.PASS)
            try:
                await told(behind, session, got)
            finally:
                await behind.close()

    asyncio.run(run())


async def post(behind: Proxy, session: aiohttp.ClientSession, timeout_s: float = 5.0) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.post(f"http://127.0.0.1:{behind.port}/", data=BODY, timeout=timeout) as answer:
        return answer.status, await answer.read()


def test_it_passes_everything_and_does_so_again_after_each_fault() -> None:
    async def told(behind: Proxy, session: aiohttp.ClientSession, got: list[bytes]) -> None:
        for mode in Mode:
            await behind.switch(mode)
            await behind.switch(Mode.PASS)
            assert await post(behind, session) == (200, BODY)
        assert got == [BODY] * len(Mode)

    story(told)


def test_a_denial_is_read_by_who_still_sends_and_reaches_nobody() -> None:
    async def told(behind: Proxy, session: aiohttp.ClientSession, got: list[bytes]) -> None:
        await behind.switch(Mode.DENY)
        assert await post(behind, session) == (403, b"<Code>AccessDenied</Code>")
        assert got == []

    story(told)


def test_what_is_away_refuses_at_once_and_breaks_what_is_open() -> None:
    async def told(behind: Proxy, session: aiohttp.ClientSession, _: list[bytes]) -> None:
        await post(behind, session)  # leaves a connection that the next one would use
        await behind.switch(Mode.AWAY)
        with pytest.raises(aiohttp.ClientOSError):
            await post(behind, session)

    story(told)


def test_what_hangs_never_answers() -> None:
    async def told(behind: Proxy, session: aiohttp.ClientSession, got: list[bytes]) -> None:
        await behind.switch(Mode.HANG)
        with pytest.raises(TimeoutError):
            await post(behind, session, timeout_s=0.1)
        assert got == []

    story(told)


def test_what_is_slow_does_it_at_once_and_answers_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "SLOW_S", 0.2)

    async def told(behind: Proxy, session: aiohttp.ClientSession, got: list[bytes]) -> None:
        await behind.switch(Mode.SLOW)
        with pytest.raises(TimeoutError):
            await post(behind, session, timeout_s=0.1)
        assert got == [BODY]
        for _ in range(2):  # the second on the connection of the first
            start = time.perf_counter()
            assert await post(behind, session) == (200, BODY)
            assert time.perf_counter() - start >= 0.2

    story(told)
