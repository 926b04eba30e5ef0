"""How everything here speaks to Redis or Valkey: one server, a master that Sentinels know, or a cluster.

============================================================  ================================================
URL                                                           speaks to
============================================================  ================================================
``redis://[user:password@]host[:port][/db]``                  one server
``rediss://…``                                                the same over TLS
``unix://[user@]/path[?db=…&password=…]``                     one server on this machine
``redis+sentinel://[user:password@]host[:port],…/name[/db]``  the master called ``name``, wherever it is
``redis+cluster://[user:password@]host[:port],…``             a cluster, found through any of these nodes
``rediss+sentinel://…``, ``rediss+cluster://…``               the same over TLS, Sentinels included
============================================================  ================================================

User and password are those of the servers that hold the data; Sentinels get ``?sentinel_username=…`` and
``?sentinel_password=…``. The other options are redis-py's own: see OPTIONS.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qsl, unquote

import redis as blocking_redis
import redis.asyncio as redis
import redis.cluster as blocking_cluster
import redis.sentinel as blocking_sentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ConstantBackoff
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's own
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.retry import Retry as BlockingRetry

from app.errors import ResultsUnavailable

SCHEMES: Final = (
    "redis://", "rediss://", "unix://",
    "redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://",
)  # fmt: skip
OPTIONS: Final = frozenset(
    {
        "db", "username", "password", "client_name", "protocol",
        "ssl_ca_certs", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname",
    }
)  # fmt: skip
"""What may stand after the ``?`` of any URL; ``ssl_`` ones only where TLS is spoken."""
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
_SEVERAL: Final = re.compile(r"(rediss?)\+(sentinel|cluster)://([^/?]*@)?([^/?@]+)/?([^?]*)\??(.*)")
_PATHS: Final = {"sentinel": re.compile(r"([^/@]+)/?(\d*)"), "cluster": re.compile("()(0?)")}

_CALL_TIMEOUT_S: Final = 1.0
_SOCKET_TIMEOUT_S: Final = 0.5
_CHECK_TIMEOUT_S: Final = 5.0
_POOL_SIZE: Final = 64
# A server that was restarted has dropped its connections; one that was demoted in a failover keeps them, and
# refuses writes until the client connects anew. Every script may run twice with the same outcome (admit.lua
# counts twice), so one retry is safe. After a time-out there would be no budget left for one.
_RETRIED: Final = (ConnectionError, ReadOnlyError)


@dataclass(frozen=True, slots=True)
class _Several:
    """What a URL of several servers says.

    Attributes:
        kind: what they are.
        nodes: host and port of each Sentinel, or of each node to ask for the cluster.
        name: of the master, as the Sentinels call it; "" for a cluster.
        options: of every connection to a server with data.
        sentinel_options: of every connection to a Sentinel.
    """

    kind: Literal["sentinel", "cluster"]
    nodes: tuple[tuple[str, int], ...]
    name: str
    options: dict[str, Any] = field(repr=False)
    sentinel_options: dict[str, Any] = field(repr=False)


def check_url(url: str) -> str:
    """The URL of a server, unchanged, if connect can use it. Nothing is asked of any server.

    Raises:
        ValueError: it cannot; why is said without quoting it, since it may hold a password.
    """
    if not url.startswith(SCHEMES):
        raise ValueError(f"must start with {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}")
    try:
        _check(url)
    except (ValueError, TypeError, RedisError):
        # Their own words would quote a piece of the URL, which may be of the password.
        raise ValueError(
            "is no usable URL; %-encode what is special in a user or password; "
            f"known options: {', '.join(sorted(OPTIONS | _SENTINEL_OPTIONS))}"
        ) from None
    return url


def connect(url: str) -> redis.Redis:
    """A client with a pool of connections; none is opened before the first call.

    Of a cluster it is a RedisCluster, which has the same commands where their keys share a hash tag.

    Raises:
        ValueError: the URL is none of several servers, though its scheme says so.
    """
    bounds: dict[str, Any] = {
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": _SOCKET_TIMEOUT_S,
    }
    retry = Retry(ConstantBackoff(0.01), 1, _RETRIED)
    pool_bounds = bounds | {"max_connections": _POOL_SIZE, "timeout": _SOCKET_TIMEOUT_S, "retry": retry}
    several = _parse(url)
    if several is None:
        return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(url, **pool_bounds))
    if several.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in several.nodes]
        options = bounds | {"retry": retry} | several.options
        return cast("redis.Redis", _Cluster(startup_nodes=nodes, **options))
    # One after the other is asked, so that all of them together take no longer than one server may.
    each_s = _SOCKET_TIMEOUT_S / len(several.nodes)
    once = Retry(ConstantBackoff(0), 0, (ConnectionError,))
    ask = {"socket_timeout": each_s, "socket_connect_timeout": each_s, "retry": once}
    sentinels = Sentinel(several.nodes, sentinel_kwargs=ask | several.sentinel_options)  # type: ignore[no-untyped-call]
    pool = _SentinelPool(several.name, sentinels, **pool_bounds | several.options)  # type: ignore[no-untyped-call]
    return redis.Redis.from_pool(pool)


def connect_blocking(url: str) -> blocking_redis.Redis:
    """The same for code that is not async, with time for a slow server. A cluster is asked for its nodes now.

    Raises:
        redis.RedisError: none of a cluster's nodes answers.
        ValueError: as from connect.
    """
    bounds: dict[str, Any] = {
        "socket_timeout": _CHECK_TIMEOUT_S,
        "socket_connect_timeout": _CHECK_TIMEOUT_S,
        "retry": BlockingRetry(ConstantBackoff(0.01), 1, _RETRIED),
    }
    several = _parse(url)
    if several is None:
        return blocking_redis.Redis.from_url(url, **bounds)
    options = bounds | several.options
    if several.kind == "sentinel":
        asked = bounds | several.sentinel_options
        sentinels = blocking_sentinel.Sentinel(several.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        client = sentinels.master_for(several.name, **options)  # type: ignore[no-untyped-call]
        return cast("blocking_redis.Redis", client)
    nodes = [blocking_cluster.ClusterNode(host, port) for host, port in several.nodes]  # type: ignore[no-untyped-call]
    try:
        cluster = blocking_cluster.RedisCluster(startup_nodes=nodes, **options)
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error
    return cast("blocking_redis.Redis", cluster)


def check_server(url: str) -> None:
    """Ask a server once, from code that is not async; redis.RedisError when it does not answer."""
    try:
        with connect_blocking(url) as client:
            client.ping()
    except blocking_sentinel.MasterNotFoundError as error:
        # Its own words describe a client at length, and the reason not at all.
        raise ConnectionError(
            "no Sentinel knows the master of this name; or none answers, or their password is wrong"
        ) from error


@contextlib.asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Make any failure of the server ResultsUnavailable, and make a second the longest it takes."""
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise ResultsUnavailable(retry_after_s=1) from error


class _SentinelPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to whichever server is the master; whoever finds none free waits for one."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # the end; otherwise there is a new master
            await self.sentinel_manager.aclose()


class _Cluster(RedisCluster):
    """As many calls at once as a pool has connections; the others wait, where redis-py's own would fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands_parser = cast("Any", _KeyIsFirst())
        self._room = asyncio.Semaphore(_POOL_SIZE)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self._room:
            if self.get_default_node() is None:  # or the first calls would all go to nodes drawn at random
                await self.initialize()
            return await super().execute_command(*args, **kwargs)


class _KeyIsFirst:
    """Where the key of a command is.

    redis-py would have a node describe all its commands whenever the cluster changes: when time is shortest.
    """

    async def initialize(self, node: Any) -> None:
        """Nothing has to be asked."""

    async def get_keys(self, *command: Any) -> Sequence[Any]:
        """The first of its keys; the others are in the same slot."""
        return command[1:2]


def _parse(url: str) -> _Several | None:
    """What a URL of several servers says; None if it is one of a single server."""
    if "+" not in url.partition("://")[0]:
        return None
    found = _SEVERAL.fullmatch(url)
    path = _PATHS[found[2]].fullmatch(found[5]) if found else None
    if not found or not path:
        raise ValueError("not a URL of several servers")
    scheme, kind, user, hosts, _, query = found.groups(default="")
    name, db = path.groups()
    # redis-py reads the rest, as if there were one URL for each.
    each = [dict(parse_url(f"{scheme}://{user}{host}/{db}?{query}")) for host in hosts.split(",")]
    if not all("host" in one for one in each):
        raise ValueError("a host without a name")
    port = 26379 if kind == "sentinel" else 6379
    nodes = tuple((cast("str", one["host"]), cast("int", one.get("port", port))) for one in each)
    options = {key: each[0][key] for key in each[0].keys() - {"host", "port", "connection_class"}}
    if scheme == "rediss":
        options["ssl"] = True
    sentinel_options = {key: value for key, value in options.items() if key.startswith("ssl")}
    for key in _SENTINEL_OPTIONS & options.keys():
        sentinel_options[key.removeprefix("sentinel_")] = options.pop(key)
    return _Several(cast(Any, kind), nodes, unquote(name), options, sentinel_options)


def _check(url: str) -> None:
    """Raise ValueError, TypeError or RedisError where connect could not use the URL as it was meant."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    path = place.partition("/")[2]
    # A space, a # or an @ further on was part of a password, and what stands before it is no host.
    if re.search(r"[\s#]", url) or "@" in path + query:
        raise ValueError("a character that must be encoded")
    known = OPTIONS | _SENTINEL_OPTIONS if scheme.endswith("+sentinel") else OPTIONS
    if query and not {name for name, _ in parse_qsl(query, strict_parsing=True)} <= known:
        raise ValueError("an option that is not known")
    several = _parse(url)
    options: dict[str, Any] = dict(several.options if several else parse_url(url))
    if scheme == "unix":
        placed = "path" in options
    else:
        placed = several is not None or ("host" in options and not path.strip("0123456789"))
    if not placed:
        raise ValueError("no host, or a database that is no number")
    connection = SSLConnection if options.pop("ssl", False) else Connection
    options.pop("connection_class", connection)(**options)
