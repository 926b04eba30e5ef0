"""The HTTP contract, v1. Each route reads its request, calls one thing, and answers."""

from __future__ import annotations

import functools
import time
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.api import bodies, labels
from app.api.examples import LABELS_CSV, PROFILE
from app.api.problems import responses, with_subclasses
from app.api.requests import (
    Tenant,
    budget_s,
    idempotency_key,
    prefers_async,
    request_id_of,
    stages_of,
    tenant_of,
)
from app.errors import (
    AlreadyDecided,
    BadImage,
    BodyTimeout,
    BodyTooLarge,
    CredentialsUnavailable,
    DeadlineExceeded,
    FoodDXError,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    ImageConflict,
    ImagesUnavailable,
    InvalidField,
    InvalidRequest,
    NeedsObjectStorage,
    NotFound,
    Overloaded,
    QueueUnavailable,
    RateLimited,
    ResultsUnavailable,
    ScorerUnavailable,
    Unauthenticated,
    UnsupportedMediaType,
)
from app.pipeline import Photo
from app.schemas import (
    Diary,
    Labels,
    Models,
    Pending,
    Result,
    ReviewIn,
    ReviewQueue,
    ScoreByKey,
    Upload,
    UploadIn,
    UserId,
)
from app.service import Service
from app.telemetry import STAGES, log_soon

router = APIRouter(
    prefix="/v1", responses=responses(Unauthenticated, RateLimited, ResultsUnavailable, FoodDXError)
)
health = APIRouter(tags=["health"])

# UUIDs only: an id becomes part of a key, so its form is checked before anything else.
ResultId = Annotated[
    str, Path(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
Cursor = Annotated[
    str | None, Query(pattern=r"^[0-9a-f-]{36}$", description="`next_cursor` of the page before")
]
Limit = Annotated[int, Query(ge=1, le=100)]
_JSON, _CSV = "application/json", "text/csv"

_SCORE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The photo itself; a form with the photo and a profile; or the key of a stored photo.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "profile": {"type": "string", "contentMediaType": _JSON, "example": PROFILE},
                    },
                }
            },
            _JSON: {"schema": {"$ref": "#/components/schemas/ScoreByKey"}},
        },
    }
}


# What any route may answer that reads a body.
_BODY = (InvalidRequest, BodyTimeout, BodyTooLarge, InvalidField)


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    # Read by us and not by FastAPI, which would take any length, and before it asks for an API key.
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def _answers(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {_JSON: {"example": example}}}}


# Of a photo that is to be scored later.
_PENDING: dict[int | str, dict[str, Any]] = {
    202: {
        "model": Pending,
        "description": "The photo is stored and waits to be scored",
        "headers": {
            "Location": {"schema": {"type": "string"}, "description": "Where its result will be"},
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before asking"},
        },
    }
}


@functools.cache
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())  # looks through some 600 files


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.post(
    "/scores",
    tags=["scores"],
    summary="Score a photo",
    openapi_extra=_SCORE_BODY,
    responses={
        200: {
            "model": Result,
            "description": "The photo is stored and the result is written",
            "headers": {
                "Server-Timing": {
                    "schema": {"type": "string"},
                    "description": f"Milliseconds spent in: {', '.join(STAGES)}",
                }
            },
        },
        **_PENDING,
        **responses(
            InvalidRequest, NotFound, BodyTimeout, IdempotencyKeyReused, IdempotencyInFlight, ImageConflict,
            BodyTooLarge, UnsupportedMediaType, InvalidField, *with_subclasses(BadImage), Overloaded,
            RateLimited, ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable, QueueUnavailable,
            ScorerUnavailable, DeadlineExceeded,
        ),
    },
)  # fmt: skip
async def score(
    request: Request,
    tenant: Tenant,
    key: Annotated[str | None, Header(alias="Idempotency-Key", description="Makes a retry safe")] = None,
    budget: Annotated[str | None, Header(alias="X-Budget-Ms", description="Wait at most this long")] = None,
    prefer: Annotated[
        str | None, Header(alias="Prefer", description="`respond-async`: answer 202 and score it later")
    ] = None,
) -> Response:
    """Send a photo, or the key of a stored one; get its score, what is on the plate, and a tip.

    The same bytes are scored once: a duplicate gets the stored probabilities and a fresh tip. A key is one of
    your own photos: an upload's, the `image.key` of a result, or any in a bucket of your own.

    `Prefer: respond-async` answers 202 once the photo is stored, where the service has a queue. Without one
    it is ignored, as RFC 7240 allows: the answer comes within the budget anyway.
    """
    service, stages = _service(request), stages_of(request)
    checked_key, budget_seconds = idempotency_key(key), budget_s(budget)
    settings, request_id = service.settings, request_id_of(request)
    later = bool(settings.queue) and prefers_async(prefer)
    started = time.perf_counter()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON:
        stored = await bodies.read_model(request, ScoreByKey, timeout_s=settings.body_timeout_s)
        with service.admission.admitted():
            if later:
                return _pending(await service.arrivals.later_by_key(tenant, stored.key, stored.profile))
            answer = await service.arrivals.score(
                tenant, stored.key, stored.profile, stages,
                budget_s=budget_seconds, idempotency_key=checked_key, request_id=request_id,
            )  # fmt: skip
    else:
        with service.admission.receiving():
            body = await bodies.read_photo(
                request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
            )
        photo = Photo(body.data, body.sha256, tenant, body.profile, checked_key, request_id)
        started = time.perf_counter()
        with service.admission.admitted():
            if later:
                return _pending(await service.arrivals.later(photo))
            answer = await service.pipeline.run(photo, stages, budget_seconds)
    log_soon(
        "scored",
        request_id=request_id,
        tenant=tenant,
        total_ms=round((time.perf_counter() - started) * 1000, 1),
        stages_ms={stage: round(s * 1000, 1) for stage, s in stages.seconds.items()},
    )
    return Response(answer, media_type=_JSON)


async def score_photo(request: Request) -> Response:
    """``score`` for whoever has nothing but the request: see app/api/app.py."""
    headers = request.headers
    return await score(
        request,
        await tenant_of(request, headers.get("authorization")),
        headers.get("idempotency-key"),
        headers.get("x-budget-ms"),
        headers.get("prefer"),
    )


def _pending(result_id: str) -> Response:
    headers = {"Location": f"/v1/scores/{result_id}", "Retry-After": "1"}
    return Response(Pending(id=result_id).model_dump_json(), 202, headers, _JSON)


@router.get(
    "/scores",
    tags=["scores"],
    summary="A user's diary",
    responses=responses(InvalidField, ResultsUnavailable),
)
async def diary(
    request: Request,
    tenant: Tenant,
    user: Annotated[UserId, Query(description="The user the profile named")],
    cursor: Cursor = None,
    limit: Limit = 20,
    timezone: Annotated[str, Query(description="IANA name; where the user's days begin")] = "UTC",
) -> Diary:
    """A page of results, newest first, with the mean score of each day on it."""
    if timezone not in _timezones():
        raise InvalidField("timezone: an IANA name such as Europe/Madrid.")
    return await _service(request).records.diary(tenant, user, cursor, limit, ZoneInfo(timezone))


@router.get(
    "/scores/{result_id}",
    tags=["scores"],
    summary="One result",
    response_model=Result,
    responses={
        **_PENDING,
        # What kept the photo of an upload, or of a request for a later answer, from being scored.
        **responses(
            NotFound, ImageConflict, BodyTooLarge, UnsupportedMediaType, InvalidField,
            *with_subclasses(BadImage), ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable,
            ScorerUnavailable, DeadlineExceeded,
        ),
    },
)  # fmt: skip
async def result(request: Request, tenant: Tenant, result_id: ResultId) -> Result | Response:
    """The result as it was answered, or as it was reviewed since; 202 while its photo waits to be scored.

    Of a photo that cannot be scored, what is wrong with it.
    """
    return await _service(request).records.look(tenant, result_id) or _pending(result_id)


@router.get(
    "/scores/{result_id}/image",
    tags=["scores"],
    summary="The photo of a result",
    response_class=Response,
    responses={
        200: {"description": "The photo as it was sent", "content": {"image/*": {}}},
        **responses(NotFound, InvalidField, ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable),
    },
)
async def image(request: Request, tenant: Tenant, result_id: ResultId) -> Response:
    """The photo as it was sent: what a nutritionist looks at."""
    data, media_type = await _service(request).records.image(tenant, result_id)
    headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=media_type, headers=headers)


@router.delete(
    "/scores/{result_id}",
    tags=["scores"],
    status_code=204,
    summary="Delete a result",
    responses=responses(
        NotFound, InvalidField, ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable
    ),
)
async def delete_result(request: Request, tenant: Tenant, result_id: ResultId) -> None:
    """Delete the result, and its photo unless another result rests on the same bytes.

    Of a photo that waits to be scored: take it off.
    """
    await _service(request).records.delete(tenant, result_id)


@router.delete(
    "/users/{user}",
    tags=["scores"],
    status_code=204,
    summary="Delete a user",
    responses=responses(InvalidField, ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable),
)
async def delete_user(request: Request, tenant: Tenant, user: UserId) -> None:
    """Delete every result and photo of a user, and what is known of their tips."""
    await _service(request).records.delete_user(tenant, user)


@router.get(
    "/reviews",
    tags=["reviews"],
    summary="The review queue",
    responses=responses(InvalidField, ResultsUnavailable),
)
async def reviews(request: Request, tenant: Tenant, cursor: Cursor = None, limit: Limit = 20) -> ReviewQueue:
    """Photos the model was unsure of, oldest first."""
    return await _service(request).records.reviews(tenant, cursor, limit)


@router.post(
    "/scores/{result_id}/review",
    tags=["reviews"],
    summary="Review a result",
    openapi_extra=_json_body(ReviewIn),
    responses=responses(*_BODY, NotFound, AlreadyDecided, ResultsUnavailable),
)
async def review(request: Request, tenant: Tenant, result_id: ResultId) -> Result:
    """A nutritionist's score, dish and words; the result counts as scored from then on."""
    given = await bodies.read_model(request, ReviewIn, timeout_s=_service(request).settings.body_timeout_s)
    return await _service(request).records.review(tenant, result_id, given)


@router.get(
    "/labels",
    tags=["reviews"],
    summary="Reviews as labels to train on",
    response_model=Labels,
    responses={
        200: {
            "content": {_CSV: {"schema": {"type": "string"}, "example": LABELS_CSV}},
            "headers": {
                "Link": {
                    "schema": {"type": "string"},
                    "description": 'With a CSV: the next page, `rel="next"`; the last one has none',
                }
            },
        },
        **responses(InvalidField, ResultsUnavailable),
    },
)
async def reviewed_labels(
    request: Request,
    tenant: Tenant,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,16}$", description="`next_cursor` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    accept: Annotated[str, Header(alias="Accept", include_in_schema=False)] = _JSON,
) -> Labels | Response:
    """Every review, oldest first: the photo's key, the nutritionist's score and dish, what the model said.

    With `Accept: text/csv` as a table that a training reads: each page is a whole one, with its header, and
    names the next in `Link`. In `reviewer` and `comment` an apostrophe stands before what a spreadsheet would
    take for a formula.
    """
    page = await _service(request).records.labels(tenant, int(cursor or 0), limit)
    if _CSV not in {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}:
        return page
    link = f'<?cursor={page.next_cursor}&limit={limit}>; rel="next"'
    return Response(
        labels.to_csv(page), media_type=_CSV, headers={"Link": link} if page.next_cursor else None
    )


@router.post(
    "/uploads",
    tags=["scores"],
    summary="A presigned upload",
    status_code=201,
    openapi_extra=_json_body(UploadIn),
    responses=responses(
        *_BODY, NeedsObjectStorage, ResultsUnavailable, ImagesUnavailable, CredentialsUnavailable
    ),
)
async def uploads(request: Request, tenant: Tenant) -> Upload:
    """An id, and a form that puts one photo of this type and size straight into the bucket for five minutes.

    Where the service has a queue, the photo is scored by itself and its result comes under the id. Where it
    has none, score it by its `key`. Needs S3 as the object store.
    """
    service = _service(request)
    asked = await bodies.read_model(request, UploadIn, timeout_s=service.settings.body_timeout_s)
    return await service.arrivals.promise(tenant, asked)


@router.get("/models", tags=["models"], summary="The models")
async def models(request: Request, tenant: Tenant) -> Models:
    """What is run over your photos, in which version, with which thresholds."""
    return await _service(request).models(tenant)


@health.get("/healthz", summary="Alive", responses=_answers({"status": "alive"}))
async def healthz() -> JSONResponse:
    """200 while this process answers."""
    return JSONResponse({"status": "alive"})


@health.get(
    "/readyz",
    summary="Ready",
    responses={
        **_answers({"status": "ready"}),
        **responses(ResultsUnavailable, ImagesUnavailable, ScorerUnavailable),
    },
)
async def readyz(request: Request) -> JSONResponse:
    """200 when a photo could be scored now: models loaded, both stores take writes."""
    await _service(request).ready()
    return JSONResponse({"status": "ready"})
