"""The load generator's connections: that an answer is that of its request, whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.connections import Answer, Pool

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talk(serve: Served, said: Callable[[Pool], Awaitable[None]]) -> int:
    """Run ``said`` against a server; how many connections it was asked for."""
    opened = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(count, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with Pool(f"http://127.0.0.1:{port}/v1/scores", {"X-Test": "yes"}) as pool:
            await said(pool)
        server.close()

    asyncio.run(run())
    return opened


async def request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
    return head, await reader.readexactly(int(length.partition(":")[2]))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head, body = await request(reader)
        assert head.startswith("POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1:")
        assert "X-Test: yes\r\n" in head
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nRetry-After: 3\r\n\r\n%b" % (len(body), body))


@settings(max_examples=20)
@given(st.lists(st.lists(st.binary(max_size=300_000), max_size=4), min_size=1, max_size=5))
def test_parts_arrive_whole_and_in_order_over_one_connection(bodies: list[list[bytes]]) -> None:
    async def said(pool: Pool) -> None:
        for parts in bodies:
            assert await pool.post(parts, 5) == Answer(
                200, {"content-length": str(len(b"".join(parts))), "retry-after": "3"}, b"".join(parts)
            )

    assert talk(echo, said) == 1


def test_requests_at_once_have_connections_of_their_own_which_are_used_again() -> None:
    async def said(pool: Pool) -> None:
        for _ in range(3):
            answers = await asyncio.gather(*(pool.post([b"%d" % number], 5) for number in range(8)))
            assert [answer.body for answer in answers] == [b"%d" % number for number in range(8)]

    assert talk(echo, said) == 8


def test_an_answer_in_chunks_and_pieces_is_put_together() -> None:
    async def chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        head = (b"HTTP/1.1 42", b"9 Too Many\r\nTransfer-Encoding: chunked\r\nRetry-", b"After: 1\r\n\r\n")
        for piece in (*head, b"3\r\nabc\r\n2\r", b"\nde\r\n0\r\n\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    async def said(pool: Pool) -> None:
        answer = await pool.post([b"x"], 5)
        assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, b"abcde", "1")

    talk(chunks, said)


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    async def said(pool: Pool) -> None:
        for _ in range(3):
            assert (await pool.post([b"x"], 5)).status == 200

    assert talk(once, said) == 3


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"SSH-2.0-no\r\n"]
)
def test_no_whole_answer_is_a_connection_error(answer: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)

    async def said(pool: Pool) -> None:
        with pytest.raises(ConnectionError):
            await pool.post([b"x"], 5)

    talk(broken, said)


def test_a_late_answer_is_not_taken_for_the_next_ones() -> None:
    late = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await request(reader)
            if body == b"first":
                await late.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def said(pool: Pool) -> None:
        with pytest.raises(TimeoutError):
            await pool.post([b"first"], 0.05)
        late.set()
        assert (await pool.post([b"second"], 5)).body == b"second"

    assert talk(slow, said) == 2
