"""Short words for tests below HTTP: a tenant who sends photos, and a look at what is kept."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis
from PIL import Image

from app.pipeline import Photo
from app.schemas import Profile, Result
from app.service import Service
from app.stores.images import image_key
from app.stores.results import ResultStore, Ticket
from app.telemetry import Stages
from tests.conftest import Local, LocalScorer, RecordingMeter
from tests.photos import coffee_jpeg, encoded


def meal(number: int = 0) -> bytes:
    """A photo of a cup of coffee; another number, another photo."""
    return coffee_jpeg(240 + number, 160)


def wall() -> bytes:
    """A photo with nothing to eat on it."""
    return encoded(Image.new("RGB", (240, 160), (99, 99, 99)), "JPEG")


def new_tenant() -> str:
    return f"t{uuid.uuid4().hex}"


class Tenant:
    """A tenant of a Local, whose photos come in without HTTP."""

    def __init__(self, local: Local, name: str | None = None) -> None:
        self.name = name or new_tenant()
        self.service: Service = local.service
        self.scorer: LocalScorer = local.scorer
        self.meter: RecordingMeter = local.meter
        self._folder = Path(local.settings.store) / self.name

    def photo(self, data: bytes, key: str | None = None, **profile: Any) -> Photo:
        sha256 = hashlib.sha256(data).hexdigest()
        return Photo(data, sha256, self.name, Profile(**profile), key)

    async def score(
        self, data: bytes, key: str | None = None, budget_s: float | None = None, **profile: Any
    ) -> Result:
        body = await self.service.pipeline.run(self.photo(data, key, **profile), Stages(), budget_s)
        return Result.model_validate_json(body)

    def photos(self) -> set[str]:
        """SHA-256 of every stored photo."""
        return {path.name for path in self._folder.rglob("*") if path.is_file()}

    async def kept(self, url: str) -> set[str]:
        """Every key of this tenant in the result store, once all clean-up is done."""
        await self.service.pipeline.drained()
        return keys(url, self.name)


def keys(url: str, tenant: str) -> set[str]:
    """The tenant's keys at ``url``, without what all of them begin with."""
    prefix = f"fooddx:{{{tenant}}}:"
    with redis.Redis.from_url(url) as client:
        return {key.decode().removeprefix(prefix) for key in client.scan_iter(f"{prefix}*", 1000)}


def forget(url: str, tenant: str, *expiring: str) -> None:
    """What the passing of time does to keys that expire."""
    with redis.Redis.from_url(url) as client:
        client.delete(*(f"fooddx:{{{tenant}}}:{key}" for key in expiring))


async def crash(me: Tenant, url: str, data: bytes) -> None:
    """A process claims and stores a photo and is never heard of again; its claim has run out."""
    results = ResultStore(url, dedupe_ms=1000, idempotency_ms=1000, claim_ms=1)
    photo = me.photo(data)
    ticket = Ticket(me.name, photo.sha256, "of a crashed process", uuid.uuid4().hex)
    assert (await results.begin(ticket)).kind == "claimed"
    await me.service.images.shared.put(image_key(me.name, photo.sha256), data)
    await results.close()
    await asyncio.sleep(0.005)


def play(
    make_local: Callable[..., Local], story: Callable[[Tenant], Awaitable[None]], **settings: Any
) -> None:
    """Run ``story`` with a tenant of a fresh Local. The budget is wide unless the story is about it."""

    async def run() -> None:
        local = make_local(**{"budget_ms": 60_000} | settings)
        try:
            await story(Tenant(local))
        finally:
            await local.service.close()

    asyncio.run(run())
