"""Who is told of a result that nobody waits for: a queue of the operator's, a webhook of the tenant's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from app.errors import FoodDXError, QueueUnavailable
from app.intake import NotTold
from app.notices.webhook import WEBHOOK_SECRET, NoticeFailed, Webhook
from app.stores.queue import Queue
from app.tenants.tenants import Tenant

if TYPE_CHECKING:
    from app.tenants.credentials import Secrets

SCORED = "score.scored"
"""The type of the one event there is."""


class Notices:
    """Tells the queue first, then the webhook. Both at least once, and with the result's id."""

    def __init__(
        self,
        queue: Queue | None,
        secrets: Callable[[Tenant], Awaitable[Secrets | None]],
        webhook: Webhook | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            queue: for the results of all tenants; None: no such queue.
            secrets: opens a tenant's credentials.
            webhook: what posts; one for tests receives on this machine.
        """
        self._queue, self._secrets = queue, secrets
        self._webhook = webhook or Webhook()

    async def close(self) -> None:
        """Let go of connections and threads."""
        await self._webhook.aclose()
        if self._queue:
            await self._queue.close()

    async def tell(self, tenant: Tenant, result_id: str, result: bytes) -> None:
        """Tell of a result, JSON.

        Raises:
            NotTold: one of the two was not told; the other is told again with the next try.
        """
        if not self._queue and not tenant.webhook:
            return
        event = json.dumps({"type": SCORED, "tenant": tenant.id, "data": json.loads(result)})
        if self._queue:
            try:
                await self._queue.send(event)
            except QueueUnavailable as error:
                raise NotTold(str(error), again=True) from None
        if tenant.webhook:
            await self._post(tenant, result_id, event.encode())

    async def _post(self, tenant: Tenant, result_id: str, event: bytes) -> None:
        try:
            secrets = await self._secrets(tenant)
        except FoodDXError as error:
            raise NotTold(error.detail, again=error.retryable) from None
        if secrets is None or WEBHOOK_SECRET not in secrets:
            raise NotTold(f"The tenant's credentials have no {WEBHOOK_SECRET}.", again=False)
        try:
            await self._webhook.post(tenant.webhook, secrets.reveal(WEBHOOK_SECRET), event, id=result_id)
        except NoticeFailed as error:
            raise NotTold(f"The webhook failed: {error}.", again=error.retryable) from None
