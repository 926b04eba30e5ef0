"""How everything here speaks to a Redis or Valkey server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import redis as blocking_redis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - redis-py's own

from app.errors import ResultsUnavailable

_SOCKET_TIMEOUT_S: Final = 0.5
_CHECK_TIMEOUT_S: Final = 5.0
_POOL_SIZE: Final = 64


def connect(url: str) -> redis.Redis:
    """A client with a pool of connections; none is opened before the first call."""
    return redis.Redis.from_pool(
        redis.BlockingConnectionPool.from_url(
            url,
            max_connections=_POOL_SIZE,
            timeout=_SOCKET_TIMEOUT_S,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_SOCKET_TIMEOUT_S,
            # A server that was restarted has dropped its connections. Every script may run twice with the
            # same outcome (admit.lua counts twice), so one retry is safe. After a time-out there would be no
            # budget left for one.
            retry=Retry(ConstantBackoff(0.01), 1, (ConnectionError,)),
        )
    )


def connect_blocking(url: str) -> blocking_redis.Redis:
    """The same for code that is not async: one connection, and time for a slow server."""
    return blocking_redis.Redis.from_url(
        url, socket_timeout=_CHECK_TIMEOUT_S, socket_connect_timeout=_CHECK_TIMEOUT_S
    )


def check_server(url: str) -> None:
    """Ask a server once, from code that is not async; redis.RedisError when it does not answer."""
    with connect_blocking(url) as client:
        client.ping()


@contextlib.asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Make any failure of the server ResultsUnavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise ResultsUnavailable(retry_after_s=1) from error
