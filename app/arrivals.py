"""Photos that lie in a bucket, or are to: scored by their key, promised an id, answered later.

What arrives from outside is under ``uploads/``, see app/tenants/places.py. Scored, it is kept under its
content like every other photo, and the upload goes. Its result has the id that was promised, so that whoever
comes second, be it a client, a message or its repetition, finds what the first made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

import uuid_utils

from app.errors import (
    DeadlineExceeded,
    FoodDXError,
    IdempotencyKeyReused,
    NeedsObjectStorage,
    NotFound,
    QueueUnavailable,
)
from app.imaging.guards import recognise
from app.pipeline import Images, Photo, Pipeline
from app.schemas import Job, Profile, Upload, UploadIn
from app.stores.images import ImageStore
from app.stores.results import ResultStore
from app.telemetry import Stages
from app.tenants.places import Places, is_upload_of, result_id_of, upload_key


class Send(Protocol):
    """Puts a message on the intake's queue; QueueUnavailable when it cannot."""

    async def __call__(self, body: str) -> None:
        """Send it."""


class Arrivals:
    """What the pipeline does not know: where photos come from that nobody sends along."""

    def __init__(
        self,
        *,
        images: Images,
        results: ResultStore,
        pipeline: Pipeline,
        places: Places,
        max_bytes: int,
        delete: Callable[[str, str], Awaitable[None]],
        send: Send | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Put the parts together; ``delete`` deletes a result; without ``send`` nothing is answered later."""
        self._images = images
        self._results = results
        self._pipeline = pipeline
        self._places = places
        self._max_bytes = max_bytes
        self._delete = delete
        self._send = send
        self._clock = clock

    async def promise(self, tenant: str, asked: UploadIn) -> Upload:
        """A form for one upload, and the id of the result that will come of it.

        Raises:
            NeedsObjectStorage: the tenant's photos are in a folder.
            ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable.
        """
        images = await self._images(tenant)
        from app.stores.s3 import S3Images  # noqa: PLC0415 - loads what a folder spares
        from app.stores.uploads import upload_form  # noqa: PLC0415

        if not isinstance(images, S3Images):
            raise NeedsObjectStorage("Presigned uploads need S3 as the object store; send the photo itself.")
        result_id = str(uuid_utils.uuid7())
        key = upload_key(tenant, result_id)
        form = await upload_form(
            images,
            key,
            media_type=asked.media_type,
            max_bytes=min(asked.bytes, self._max_bytes),
            now=self._clock(),
        )
        await self._results.put_job(tenant, result_id, _job(asked.profile))
        return Upload(
            id=result_id, key=key, url=form.url, fields=dict(form.fields), expires_at=form.expires_at
        )

    async def score(
        self,
        tenant: str,
        key: str,
        profile: Profile | None,
        stages: Stages,
        *,
        budget_s: float | None = None,
        idempotency_key: str | None = None,
        request_id: str = "-",
        result_id: str | None = None,
    ) -> bytes:
        """Score a photo of the tenant's store by its key there, unless that was done before.

        Args:
            tenant: who asks.
            key: of the photo.
            profile: for whom the tip is; None or an empty one: whoever it was uploaded for.
            stages: gets the time of each stage.
            budget_s: as in ``Pipeline.run``; reading the photo counts.
            idempotency_key: of the request.
            request_id: for the logs.
            result_id: the id its result was promised, where the key does not say.

        Returns:
            The Result as JSON.

        Raises:
            NotFound: there is no such photo, or it is another tenant's.
            FoodDXError: as ``Pipeline.run``.
        """
        if not self._places.owns(tenant, key):
            raise NotFound("This photo is not stored.")
        started = time.monotonic()
        images = await self._images(tenant)
        result_id, job = result_id_of(key) or result_id, None
        if result_id:
            body, job = await self._results.find(tenant, result_id)
            if body is not None:
                await self._claimed(images, tenant, key)
                return body
            _check_wanted(job)
        budget_s = min(budget_s or self._pipeline.budget_s, self._pipeline.budget_s)
        try:
            data = await self._fetch(images, key, stages, budget_s)
        except NotFound:
            # Whoever scored it since then has taken the upload away.
            body = await self._results.get(tenant, result_id) if result_id else None
            if body is None:
                raise
            return body
        photo = Photo(
            data, hashlib.sha256(data).hexdigest(), tenant, _for_whom(profile, job), idempotency_key,
            request_id, result_id,
        )  # fmt: skip
        left_s = budget_s - (time.monotonic() - started)
        body = await self._pipeline.run(photo, stages, max(left_s, 0.001))
        if job and result_id:
            await self._undo_unwanted(tenant, result_id)
        await self._claimed(images, tenant, key)
        return body

    async def _undo_unwanted(self, tenant: str, result_id: str) -> None:
        """Take a result back that was deleted while it was being made; NotFound then."""
        _, job = await self._results.find(tenant, result_id)
        try:
            _check_wanted(job)
        except NotFound:
            await self._delete(tenant, result_id)
            raise

    async def _fetch(self, images: ImageStore, key: str, stages: Stages, budget_s: float) -> bytes:
        try:
            with stages.timed("store"):
                async with asyncio.timeout(budget_s):
                    return (await images.fetch(key, self._max_bytes)).data
        except TimeoutError:
            raise DeadlineExceeded("The photo could not be read in time.", retry_after_s=1) from None

    async def _claimed(self, images: ImageStore, tenant: str, key: str) -> None:
        """An upload whose result is written is not needed any more."""
        if is_upload_of(tenant, key):
            await images.delete(key)

    async def id_of(self, tenant: str, key: str, version: str = "") -> str:
        """The id of the result of an object: the same for every message about it, another for other content.

        Args:
            tenant: whose object it is.
            key: of the object, in the tenant's store.
            version: or etag; "": the store is asked.
        """
        if promised := result_id_of(key):
            return promised
        if not version:
            stored = await (await self._images(tenant)).head(key)
            version = stored.version or stored.etag.strip('"')
        digest = _digest(*self._places.address(tenant, key), version)
        return await self._results.first_of(tenant, digest, str(uuid_utils.uuid7()))

    async def later(self, photo: Photo) -> str:
        """Keep a photo for the intake; the id of its result to come. Needs a queue.

        When this returns, photo and request are stored. Raises as ``Pipeline.run``, and QueueUnavailable.
        """
        recognise(photo.data)  # what is no image is told so now, not to whoever asks for the result
        result_id = await self._id_for(photo)
        key = upload_key(photo.tenant, result_id)
        images = await self._images(photo.tenant)
        body, _ = await self._results.find(photo.tenant, result_id)
        if body is not None:
            return result_id
        try:
            # In this order: the photo may be an event, and the intake at work, before the next line runs.
            await self._results.put_job(photo.tenant, result_id, _job(photo.profile))
            await images.put(key, photo.data)
            await self._tell(photo.tenant, key)
        except FoodDXError:
            if not photo.idempotency_key:  # with one, a retry comes for this very id
                self._pipeline.in_background(self._forget(photo.tenant, result_id, images))
            raise
        return result_id

    async def _forget(self, tenant: str, result_id: str, images: ImageStore) -> None:
        """What was not answered 202 need not be scored; where it is all the same, nobody knows its id."""
        with suppress(FoodDXError):
            await self._results.forget_job(tenant, result_id)
        with suppress(FoodDXError):
            await images.delete(upload_key(tenant, result_id))

    async def later_by_key(self, tenant: str, key: str, profile: Profile) -> str:
        """The same for a photo that is stored already. Raises as ``score`` and ``later``."""
        if not self._places.owns(tenant, key):
            raise NotFound("This photo is not stored.")
        result_id = await self.id_of(tenant, key)
        body, job = await self._results.find(tenant, result_id)
        if body is None:
            await (await self._images(tenant)).head(key)  # NotFound is for whoever asks, not for the intake
            await self._results.put_job(tenant, result_id, _job(_for_whom(profile, job)))
            await self._tell(tenant, key)
        return result_id

    async def _id_for(self, photo: Photo) -> str:
        """A new id, or the one that a request with the same Idempotency-Key was given."""
        fresh = str(uuid_utils.uuid7())
        if not photo.idempotency_key:
            return fresh
        asked = _digest(photo.sha256, photo.profile.model_dump_json())
        name = _digest("idempotency", photo.idempotency_key)
        first = await self._results.first_of(photo.tenant, name, f"{fresh} {asked}")
        result_id, _, asked_first = first.partition(" ")
        if asked_first != asked:
            raise IdempotencyKeyReused("Use a new Idempotency-Key for a new photo or profile.")
        return result_id

    async def _tell(self, tenant: str, key: str) -> None:
        bucket, object_key = self._places.address(tenant, key)
        assert self._send, "later needs a queue"  # noqa: S101
        try:
            async with asyncio.timeout(self._pipeline.budget_s):
                await self._send(json.dumps({"bucket": bucket, "key": object_key}))
        except TimeoutError:  # the message may come all the same: it does no harm
            raise QueueUnavailable("The intake queue is slow.", retry_after_s=1) from None


def _for_whom(profile: Profile | None, job: bytes | None) -> Profile:
    """As is said now, or else as was said when the photo was uploaded."""
    if job and profile in (None, Profile()):
        return Job.model_validate_json(job).profile
    return profile or Profile()


def _check_wanted(job: bytes | None) -> None:
    if job and Job.model_validate_json(job).deleted:
        raise NotFound("The result was deleted before it was made.")


def _job(profile: Profile) -> bytes:
    return Job(profile=profile).model_dump_json().encode()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
