"""Who may call now: the tenants as they were a moment ago, and their limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from app.errors import FoodDXError, ResultsUnavailable, Unauthenticated
from app.stores.tenants import Allowance
from app.telemetry import logger
from app.tenants.tenants import Directory, Limits, Tenant

REFRESH_EVERY_S: Final = 5.0
"""How long it takes at most until a disabled tenant, or a key that ended early, is refused."""
_ASK_AGAIN_S: Final = 1.0
"""An unknown key may have been made just now: it is looked for in the store, but no more often than this."""


class Store(Protocol):
    """What this asks of app/stores/tenants.py."""

    async def all(self) -> list[Tenant]:
        """Every tenant."""

    async def admit(self, tenant_id: str, limits: Limits) -> Allowance | None:
        """Count one request."""


class Access:
    """Finds the tenant of a request and counts it. ``refresh`` is to be called every REFRESH_EVERY_S.

    Attributes:
        directory: the tenants that are known.
    """

    def __init__(self, first: Tenant, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        """``first`` is a tenant that is always there, whatever the store holds."""
        self._first = first
        self._store = store
        self._clock = clock
        self._loaded = False
        self._asked = -_ASK_AGAIN_S
        self.directory = Directory([first])

    async def refresh(self) -> bool:
        """Read the tenants anew; where that fails, those known stay, and a log line says so.

        Returns:
            Whether it went well.
        """
        self._asked = self._clock()
        try:
            found = await self._store.all()
        except FoodDXError as error:
            logger.warning("tenants not refreshed", extra={"code": error.code})
            return False
        self.directory = Directory([*found, self._first])
        self._loaded = True
        return True

    def models_of(self, tenant_id: str) -> tuple[str, ...]:
        """The models of a tenant's own, if it has any."""
        tenant = self.directory.get(tenant_id)
        return tenant.models if tenant else ()

    async def enter(self, authorization: str | None) -> tuple[Tenant, Allowance | None]:
        """The tenant whose API key is in an Authorization header, and what its limits say of this request.

        Raises:
            Unauthenticated: nobody's key, or one that ended, or of a disabled tenant.
            ResultsUnavailable: the store must be asked, and does not answer.
        """
        tenant = await self._owner(authorization)
        return tenant, await self._store.admit(tenant.id, tenant.limits)

    async def _owner(self, authorization: str | None) -> Tenant:
        now = datetime.now(UTC)
        tenant = self.directory.owner(authorization, now)
        if tenant is None and authorization and self._clock() - self._asked >= _ASK_AGAIN_S:
            await self.refresh()
            tenant = self.directory.owner(authorization, now)
        if tenant is None and authorization and not self._loaded:
            raise ResultsUnavailable("Nobody knows yet whose key this is.", retry_after_s=1)
        if tenant is None:
            raise Unauthenticated("Send your API key as 'Authorization: Bearer <key>'.")
        return tenant
