"""What the two deployments that bring photos in share: their service, its judges and its chores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr

from app.arrivals import Send
from app.deployments.calls import RemoteScorer
from app.errors import FoodDXError
from app.food.foods import TableError
from app.judge import TableJudge
from app.service import Service
from app.settings import Settings
from app.telemetry import RayMeter, logger
from app.tenants.access import REFRESH_EVERY_S
from app.tenants.tenants import Tenant
from models.manifest import ManifestError

_SWEEP_EVERY_S: Final = 300.0


class JudgeConfig(BaseModel):
    """What ``user_config`` may change while a replica runs.

    ``thresholds`` by name, see app.food.assessment, over the manifests' own; ``models``: none means those it
    began with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: Mapping[str, int | float] = {}
    models: tuple[str, ...] = ()


def service_of(
    settings: Settings,
    redis_url: SecretStr,
    first: Tenant,
    preprocessor: Any,
    *,
    send: Send | None = None,
    budget_s: float | None = None,
) -> Service:
    """The service of one replica, with the Preprocessor's handle as its scorer; see Service.wire."""
    scorer = RemoteScorer(preprocessor, settings.max_in_flight)
    return Service.wire(
        settings=settings,
        redis_url=redis_url.get_secret_value(),
        first=first,
        judge=TableJudge(settings.models, registry=settings.registry_dir),
        score=scorer,
        scorer_ready=scorer.ready,
        meter=RayMeter(),
        send=send,
        budget_s=budget_s,
    )


def follow(service: Service, config: dict[str, Any]) -> None:
    """Take new models and thresholds; photos under way keep those they began with.

    Models that cannot be read leave those before in use, as in the scorer.
    """
    wanted = JudgeConfig.model_validate(config)
    models = wanted.models or service.settings.models
    try:
        judge = TableJudge(models, registry=service.settings.registry_dir)
    except (ManifestError, TableError):
        logger.exception("models cannot be loaded", extra={"models": list(models)})
        return
    service.judges.serving = judge.adjusted(wanted.thresholds)


def chores(service: Service) -> list[asyncio.Task[None]]:
    """What a replica does beside its work, as long as it lives: follow the tenants, sweep after crashes."""
    work: tuple[Coroutine[Any, Any, None], ...] = (_follow_tenants(service), _sweep(service))
    return [asyncio.get_running_loop().create_task(chore) for chore in work]


async def _follow_tenants(service: Service) -> None:
    while True:
        await service.access.refresh()
        await asyncio.sleep(REFRESH_EVERY_S)


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        for tenant in service.access.directory.ids:
            with contextlib.suppress(FoodDXError):
                if swept := await service.records.sweep(tenant):
                    logger.warning("swept photos without a result", extra={"photos": swept})
