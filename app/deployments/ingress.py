"""The Ingress: HTTP in, the pipeline behind it, and the handle to the Preprocessor as its scorer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr
from ray import serve
from starlette.types import ASGIApp

from app.api.app import create_app
from app.deployments import settle
from app.deployments.parts import chores, follow, service_of
from app.settings import Settings
from app.tenants.tenants import Tenant


@serve.ingress()
class Ingress:
    """One replica: an HTTP server of its own behind HAProxy, or fed by Serve's proxy."""

    def __init__(
        self, settings: Settings, redis_url: SecretStr, first: Tenant, preprocessor: Any, *_beside: Any
    ) -> None:
        """``_beside`` are deployments that belong to the graph and that no request comes through."""
        self._service = service_of(settings, redis_url, first, preprocessor, send=_send_to(settings.queue))
        self._chores = chores(self._service)
        settle(computing=False)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, made once the replica is."""
        api: FastAPI = create_app(self._service, behind_serve=True)
        return api

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new models and thresholds, see JudgeConfig."""
        follow(self._service, config)


def _send_to(queue: str) -> Any:
    if not queue:
        return None
    from app.stores.queue import Queue  # noqa: PLC0415 - loads what an ingress without a queue spares

    return Queue(queue).send
