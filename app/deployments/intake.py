"""The Intake: messages of a queue in, and the same Preprocessor and Scorer behind it as behind HTTP."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from pydantic import SecretStr

from app.deployments.parts import chores, follow, service_of
from app.intake import BUDGET_S, Pace
from app.intake import Intake as QueueIntake
from app.notices.notices import Notices
from app.settings import Settings
from app.stores.queue import Queue
from app.tenants.tenants import Tenant

STOP_S: Final = 12.0
"""How long photos in hand may take when a replica stops; what is not done then is given back."""


class Intake:
    """One replica. No request comes to it."""

    def __init__(self, settings: Settings, redis_url: SecretStr, first: Tenant, preprocessor: Any) -> None:
        self._service = service_of(settings, redis_url, first, preprocessor, budget_s=BUDGET_S)
        self._notices = Notices(
            Queue(settings.notice_queue) if settings.notice_queue else None, self._service.images.secrets
        )
        self._intake = QueueIntake(
            queue=Queue(settings.queue),
            dead_letters=Queue(settings.dead_letter_queue),
            service=self._service,
            tell=self._notices.tell,
            pace=Pace(settings.intake_max_in_flight),
            tries=settings.intake_tries,
        )
        self._chores = chores(self._service)
        self._running = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        # Whose photos arrive must be known before the first message: else it would be nobody's.
        while not await self._service.access.refresh():  # noqa: ASYNC110 - a store has no event for it
            await asyncio.sleep(1)
        await self._intake.run()

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new models and thresholds, see JudgeConfig."""
        follow(self._service, config)

    def check_health(self) -> None:
        """Raise when messages are not taken any more: Ray then starts another replica."""
        if self._running.done():
            cause = None if self._running.cancelled() else self._running.exception()
            raise RuntimeError("the intake has ended") from cause

    async def __del__(self) -> None:
        """Called, and awaited, by Serve when this replica is to go."""
        await self._intake.stop(STOP_S)
        await self._notices.close()
        await self._service.close()
