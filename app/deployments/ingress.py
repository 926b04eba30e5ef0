"""The Ingress: HTTP in, the pipeline behind it, and the handle to the Preprocessor as its scorer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, SecretStr
from ray import serve
from starlette.types import ASGIApp

from app.api.app import create_app
from app.deployments.calls import calling
from app.errors import FoodDXError, ScorerUnavailable
from app.food.foods import TableError
from app.judge import TableJudge
from app.messages import PhotoJob, Rejected, Scored
from app.service import Service
from app.settings import Settings
from app.telemetry import RayMeter, logger
from app.tenants.access import REFRESH_EVERY_S
from app.tenants.tenants import Tenant
from models.manifest import ManifestError

# By gRPC a message may have 4 MiB unless every node was told otherwise; larger photos go through the object
# store of Ray, which has no such bound.
_LARGEST_BY_VALUE = 3 * 2**20
_SWEEP_EVERY_S = 300.0
_READY_TIMEOUT_S = 2.0


class IngressConfig(BaseModel):
    """What ``user_config`` may change while the ingress runs.

    ``thresholds`` by name, see app.food.assessment, over the manifests' own; ``models``: none means those it
    began with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: Mapping[str, int | float] = {}
    models: tuple[str, ...] = ()


@serve.ingress()
class Ingress:
    """One replica: an HTTP server of its own behind HAProxy, or fed by Serve's proxy."""

    def __init__(self, settings: Settings, redis_url: SecretStr, first: Tenant, preprocessor: Any) -> None:
        self._small = preprocessor
        self._large = preprocessor.options(_by_reference=True)
        self._service = Service.wire(
            settings=settings,
            redis_url=redis_url.get_secret_value(),
            first=first,
            judge=TableJudge(settings.models, registry=settings.registry_dir),
            score=self._score,
            scorer_ready=self._scorer_ready,
            meter=RayMeter(),
        )
        loop = asyncio.get_running_loop()
        self._chores = [loop.create_task(self._sweep()), loop.create_task(self._follow_tenants())]

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, made once the replica is."""
        api: FastAPI = create_app(self._service, behind_serve=True)
        return api

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new models and thresholds; requests under way keep those they began with.

        Models that cannot be read leave those before in use, as in the scorer.
        """
        wanted = IngressConfig.model_validate(config)
        settings = self._service.settings
        models = wanted.models or settings.models
        try:
            judge = TableJudge(models, registry=settings.registry_dir)
        except (ManifestError, TableError):
            logger.exception("models cannot be loaded", extra={"models": list(models)})
            return
        self._service.pipeline.judge = judge.adjusted(wanted.thresholds)

    async def _score(self, job: PhotoJob) -> Scored | Rejected:
        handle = self._large if len(job.data) > _LARGEST_BY_VALUE else self._small
        with calling("preprocessor"):
            outcome: Scored | Rejected = await handle.remote(job)
        return outcome

    async def _scorer_ready(self) -> None:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                with calling("preprocessor"):
                    if await self._small.ready.remote():
                        return
        except TimeoutError:
            pass
        raise ScorerUnavailable("The models are not loaded yet.", retry_after_s=1)

    async def _follow_tenants(self) -> None:
        while True:
            await self._service.access.refresh()
            await asyncio.sleep(REFRESH_EVERY_S)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            for tenant in self._service.access.directory.ids:
                with contextlib.suppress(FoodDXError):
                    if swept := await self._service.records.sweep(tenant):
                        logger.warning("swept photos without a result", extra={"photos": swept})
