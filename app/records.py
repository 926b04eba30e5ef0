"""What was scored, afterwards: one result, a diary, reviews, labels, deletion, the sweep behind a crash."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import uuid_utils

from app.errors import AlreadyDecided, FoodDXError, ImagesUnavailable, NotFound, by_code
from app.pipeline import Images
from app.schemas import DayMean, Diary, Job, Label, Labels, Result, Review, ReviewIn, ReviewQueue
from app.stores.images import image_key
from app.stores.results import ResultStore
from app.telemetry import Meter, logger
from app.tenants.places import upload_key

# Far longer than any claim lasts, so that the sweep never meets a request that is still alive.
SWEEP_AGE = timedelta(minutes=10)
# A photo is in work for about a second at most.
_BUSY_TRIES = 15
_BUSY_WAIT_S = 0.05


class Records:
    """A tenant's results. Unknown ids, and ids of another tenant, are NotFound alike."""

    def __init__(self, images: Images, results: ResultStore, meter: Meter) -> None:
        self._images = images
        self._results = results
        self._meter = meter

    async def get(self, tenant: str, result_id: str) -> Result:
        """One result."""
        body = await self._results.get(tenant, result_id)
        if body is None:
            raise NotFound("There is no result with this id.")
        return Result.model_validate_json(body)

    async def look(self, tenant: str, result_id: str) -> Result | None:
        """One result; None while its photo waits or is being scored.

        Raises:
            NotFound: nothing of this id is known.
            FoodDXError: what kept the photo from being scored, for good.
        """
        body, job = await self._results.find(tenant, result_id)
        if body is not None:
            return Result.model_validate_json(body)
        known = Job.model_validate_json(job) if job else Job(deleted=True)
        if known.deleted:
            raise NotFound("There is no result with this id.")
        if known.failed:
            raise by_code(known.failed.code, known.failed.detail)
        return None

    async def image(self, tenant: str, result_id: str) -> tuple[bytes, str]:
        """The photo behind a result, as it was sent, and its media type."""
        result = await self.get(tenant, result_id)
        images = await self._images(tenant)
        return await images.get(result.image.key), result.image.media_type

    async def diary(self, tenant: str, user: str, cursor: str | None, limit: int, zone: ZoneInfo) -> Diary:
        """A page of a user's results, newest first.

        Args:
            tenant: whose user it is.
            user: the user.
            cursor: id of the last result of the page before, or None.
            limit: most results on the page.
            zone: where the user's days begin and end.
        """
        ids = await self._results.diary(tenant, user, cursor, limit + 1)
        bodies = await self._results.get_many(tenant, ids[:limit])
        items = tuple(Result.model_validate_json(body) for body in bodies)
        days = sorted({item.created_at.astimezone(zone).date() for item in items}, reverse=True)
        means = []
        for day in days:
            start = datetime(day.year, day.month, day.day, tzinfo=zone)
            # The next local midnight: a day is 23 or 25 hours long where clocks change.
            end = datetime.combine(day + timedelta(days=1), datetime.min.time(), zone)
            day_ids = await self._results.diary_between(tenant, user, start, end)
            found = [Result.model_validate_json(b) for b in await self._results.get_many(tenant, day_ids)]
            scores = [result.score for result in found if result.score is not None]
            means.append(
                DayMean(
                    date=day,
                    photos=len(found),
                    scored=len(scores),
                    score_mean=round(sum(scores) / len(scores), 2) if scores else None,
                )
            )
        more = ids[limit - 1] if len(ids) > limit else None
        return Diary(user=user, items=items, days=tuple(means), next_cursor=more)

    async def delete(self, tenant: str, result_id: str) -> None:
        """Delete a result, and its photo when no other result rests on it.

        Raises:
            NotFound: there is no such result.
            ResultsUnavailable, ImagesUnavailable: not deleted, or not all of it; ask again.
        """
        # Shielded, so that a client that goes away does not leave a result without its photo.
        await asyncio.shield(asyncio.create_task(self._delete(tenant, result_id)))

    async def _delete(self, tenant: str, result_id: str) -> None:
        images = await self._images(tenant)
        body, job = await self._results.find(tenant, result_id)
        if body is None:
            if job is None or Job.model_validate_json(job).deleted:
                raise NotFound("There is no result with this id.")
            await self._results.put_job(tenant, result_id, Job(deleted=True).model_dump_json().encode())
            await images.delete(upload_key(tenant, result_id))
            # Whoever has the photo in work sees the mark after it has written the result, or has by now.
            body, _ = await self._results.find(tenant, result_id)
            if body is None:
                return
        result = Result.model_validate_json(body)
        sha256, token = result.image.sha256, uuid_utils.uuid4().hex
        for _ in range(_BUSY_TRIES):
            outcome = await self._results.delete(
                tenant, result_id, sha256, token, result.user, photo_gone=False
            )
            if outcome != "busy":
                break
            await asyncio.sleep(_BUSY_WAIT_S)
        if outcome == "busy":
            raise ImagesUnavailable("This photo is in work; ask again shortly.", retry_after_s=1)
        if outcome == "missing":
            raise NotFound("There is no result with this id.")
        if outcome == "photo":
            # Should this fail, the claim runs out by itself: a deletion that is merely late must not meet
            # the same photo stored anew.
            await images.delete(image_key(tenant, sha256))
            await self._results.delete(tenant, result_id, sha256, token, result.user, photo_gone=True)

    async def delete_user(self, tenant: str, user: str) -> None:
        """Delete everything of a user. A user nobody knows is deleted already."""
        while ids := await self._results.diary(tenant, user, None, 100):
            for result_id in ids:
                try:
                    await self.delete(tenant, result_id)
                except NotFound:
                    await self._results.forget_entry(tenant, user, result_id)
        await self._results.forget_user(tenant, user)

    async def reviews(self, tenant: str, cursor: str | None, limit: int) -> ReviewQueue:
        """Results that wait for a nutritionist, oldest first."""
        ids = await self._results.reviews(tenant, cursor, limit + 1)
        bodies = await self._results.get_many(tenant, ids[:limit])
        more = ids[limit - 1] if len(ids) > limit else None
        return ReviewQueue(items=tuple(Result.model_validate_json(b) for b in bodies), next_cursor=more)

    async def review(self, tenant: str, result_id: str, given: ReviewIn) -> Result:
        """Put a nutritionist's decision on a result; a later review replaces an earlier one."""
        result = await self.get(tenant, result_id)
        if result.status == "not_food":
            raise AlreadyDecided("The photo was found to hold no food.")
        review = Review(**given.model_dump(), reviewed_at=datetime.now(UTC))
        reviewed = result.model_copy(update={"status": "scored", "score": given.score, "review": review})
        if not await self._results.reviewed(tenant, result_id, reviewed.model_dump_json().encode()):
            raise NotFound("There is no result with this id.")
        return reviewed

    async def labels(self, tenant: str, after: int, limit: int) -> Labels:
        """A page of what nutritionists decided, in the order of their reviews.

        A result that is reviewed again meanwhile moves to a later page; the page before keeps its old label.

        Args:
            tenant: whose labels.
            after: ``next_cursor`` of the page before, or 0.
            limit: most labels on the page; there are fewer where results were deleted just then.
        """
        found = await self._results.labels(tenant, after, limit + 1)
        bodies = await self._results.get_many(tenant, [result_id for result_id, _ in found[:limit]])
        results = (Result.model_validate_json(body) for body in bodies)
        items = tuple(_label(result, result.review) for result in results if result.review)
        more = str(found[limit - 1][1]) if len(found) > limit else None
        return Labels(items=items, next_cursor=more)

    async def sweep(self, tenant: str) -> int:
        """Delete photos that a crash left without a result.

        Returns:
            How many were deleted.
        """
        deleted = 0
        for sha256 in await self._results.stale_claims(tenant, datetime.now(UTC) - SWEEP_AGE):
            token = uuid_utils.uuid4().hex
            try:
                images = await self._images(tenant)
                if await self._results.adopt(tenant, sha256, token):
                    await images.delete(image_key(tenant, sha256))
                    await self._results.release(tenant, sha256, token)
                    deleted += 1
            except FoodDXError as error:
                logger.warning("sweep postponed", extra={"code": error.code})
                break
        if deleted:
            self._meter.add("fooddx_swept_total", deleted)
        return deleted


def _label(result: Result, review: Review) -> Label:
    return Label(
        image=result.image.key,
        score=review.score,
        dish=review.dish,
        id=result.id,
        sha256=result.image.sha256,
        model=f"{result.model.name}@{result.model.version}",
        model_score=result.score_mean,
        reviewer=review.reviewer,
        reviewed_at=review.reviewed_at,
        comment=review.comment,
    )
