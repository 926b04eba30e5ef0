"""Tenants and how often they called, over the Redis protocol.

========================  ======  ====================================================================
key                       type    holds
========================  ======  ====================================================================
``fooddx:tenants``        hash    tenant id → the tenant as JSON; of its API keys only hashes
``fooddx:{tenant}:rate``  string  when its next request would be due at its rate (expires)
``fooddx:{tenant}:day``   string  its requests since midnight UTC (expires)
========================  ======  ====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import redis as blocking_redis
import redis.asyncio as redis
from pydantic import ValidationError

from app.errors import ResultsUnavailable
from app.stores.connection import connect_blocking, reachable
from app.tenants.tenants import Limits, Tenant

TENANTS: Final = "fooddx:tenants"


class TenantError(ValueError):
    """What was asked for cannot be done to this tenant; the text says why."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant's limits say of one request.

    Attributes:
        allowed: whether it may go on.
        limit: of the limit that is nearest: the requests it allows at once, or a day.
        remaining: how many of them are left.
        reset_s: seconds until there is more: one request where this was refused, else all of ``limit``.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float


class Tenants:
    """What a service asks of the store. Any failure of the server is ResultsUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._admit = client.register_script((Path(__file__).parent / "admit.lua").read_text())

    async def all(self) -> list[Tenant]:
        """Every tenant, in no order."""
        async with reachable():
            found = cast("Mapping[bytes, bytes]", await self._client.hgetall(TENANTS))
        return _read(found)

    async def admit(self, tenant_id: str, limits: Limits) -> Allowance | None:
        """Count one request; None where there is no limit, and nothing was asked."""
        if not limits.any:
            return None
        burst = max(1, math.floor(limits.per_second or 1))
        arguments = [limits.per_second or "", burst, limits.per_day or ""]
        keys = [f"fooddx:{{{tenant_id}}}:{name}" for name in ("rate", "day")]
        async with reachable():
            word, limit, left, reset = cast("list[bytes]", await self._admit(keys=keys, args=arguments))
        return Allowance(word == b"allowed", int(limit), int(left), float(reset))


class TenantAdmin:
    """What an administrator does to tenants, one command at a time. Also a context manager.

    A failure of the server is ResultsUnavailable.
    """

    def __init__(self, url: str) -> None:
        self._client = _said(lambda: connect_blocking(url))
        self._change = self._client.register_script((Path(__file__).parent / "change.lua").read_text())

    def __enter__(self) -> TenantAdmin:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def all(self) -> list[Tenant]:
        """Every tenant, by id."""
        found = _said(lambda: self._client.hgetall(TENANTS))
        return sorted(_read(found), key=lambda tenant: tenant.id)

    def add(self, tenant: Tenant) -> None:
        """Store a new tenant; TenantError if there is one with its id."""
        if not _said(lambda: self._client.hsetnx(TENANTS, tenant.id, tenant.model_dump_json())):
            raise TenantError(f"there is a tenant {tenant.id} already")

    def put(self, tenant: Tenant) -> None:
        """Store a tenant, in the place of the one with its id if there is one."""
        _said(lambda: self._client.hset(TENANTS, tenant.id, tenant.model_dump_json()))

    def change(self, tenant_id: str, how: Callable[[Tenant], Tenant]) -> Tenant:
        """Replace a tenant by what ``how`` makes of it, called again if somebody else was faster.

        Raises:
            TenantError: there is no such tenant.
        """
        while True:
            before = _said(lambda: self._client.hget(TENANTS, tenant_id))
            if before is None:
                raise TenantError(f"there is no tenant {tenant_id}")
            changed = how(Tenant.model_validate_json(before))
            arguments = [tenant_id, before, changed.model_dump_json()]
            (word,) = _said(lambda: self._change(keys=[TENANTS], args=arguments))  # noqa: B023 - called at once
            if word == b"written":
                return changed


def _read(found: Mapping[bytes, bytes]) -> list[Tenant]:
    try:
        return [Tenant.model_validate_json(body) for body in found.values()]
    except ValidationError as error:
        # By a newer version, or by hand. To go on without would lock somebody out in silence.
        raise ResultsUnavailable("The tenants in the store cannot be read.") from error


def _said(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (blocking_redis.RedisError, OSError) as error:
        raise ResultsUnavailable("The result store cannot be reached.") from error
