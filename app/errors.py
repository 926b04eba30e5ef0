"""Every error the service can answer, and what the client may do about it.

A photo travels ingress → preprocessor → scorer → stores. Whatever stops it on the way is one of these
classes. Each carries its HTTP status, a stable ``code`` that clients may branch on, a public title that
is always safe to show, and whether the same request may simply be sent again::

    FoodDXError                      500 internal
    ├── InvalidRequest               400 invalid_request
    │   ├── Unauthenticated          401 unauthenticated
    │   ├── NotFound                 404 not_found
    │   ├── MethodNotAllowed         405 method_not_allowed
    │   ├── BodyTimeout              408 body_timeout             retry
    │   ├── IdempotencyKeyReused     409 idempotency_key_reused
    │   ├── IdempotencyInFlight      409 idempotency_in_flight    retry
    │   ├── AlreadyDecided           409 already_decided
    │   ├── ImageConflict                409 image_conflict
    │   ├── BodyTooLarge             413 body_too_large
    │   ├── UnsupportedMediaType     415 unsupported_media_type
    │   └── InvalidField             422 invalid_field
    ├── BadImage                     422 image_unreadable
    │   ├── EmptyImage               422 image_empty
    │   ├── TruncatedImage           422 image_truncated
    │   ├── AnimatedImage            422 image_animated
    │   ├── TooManyPixels            422 image_too_many_pixels
    │   └── TooFewPixels             422 image_too_few_pixels
    ├── Overloaded                   429 overloaded               retry
    │   └── RateLimited              429 rate_limited             retry
    ├── NeedsObjectStorage           501 needs_object_storage
    ├── ResultsUnavailable           503 results_unavailable      retry
    ├── ImagesUnavailable            503 images_unavailable       retry
    ├── CredentialsUnavailable       503 credentials_unavailable  retry
    ├── QueueUnavailable             503 queue_unavailable        retry
    ├── ScorerUnavailable            503 scorer_unavailable       retry
    └── DeadlineExceeded             504 deadline_exceeded        retry

``detail`` is written by us and public: it never holds a secret, a path or a stack trace. This module
imports nothing of ours, so that every room may raise.
"""

from __future__ import annotations

from typing import ClassVar


class FoodDXError(Exception):
    """The root: an error nobody planned for. Its detail stays in the logs, not in the answer."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s


class InvalidRequest(FoodDXError):
    """The request itself is malformed."""

    status, code, title = 400, "invalid_request", "The request could not be understood"


class Unauthenticated(InvalidRequest):
    """No API key, or one that is not known."""

    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class NotFound(InvalidRequest):
    """No such result, user, or page for this tenant."""

    status, code, title = 404, "not_found", "There is nothing here"


class MethodNotAllowed(InvalidRequest):
    """The path exists, the method does not."""

    status, code, title = 405, "method_not_allowed", "This method is not offered here"


class BodyTimeout(InvalidRequest):
    """The client took too long to send its photo."""

    status, code, title, retryable = 408, "body_timeout", "The photo took too long to arrive", True


class IdempotencyKeyReused(InvalidRequest):
    """The Idempotency-Key came before with another photo or profile."""

    status, code, title = 409, "idempotency_key_reused", "This Idempotency-Key belongs to another request"


class IdempotencyInFlight(InvalidRequest):
    """The first request with this Idempotency-Key is still being answered."""

    status, code, title = 409, "idempotency_in_flight", "A request with this Idempotency-Key is in flight"
    retryable = True


class AlreadyDecided(InvalidRequest):
    """A review for a photo that holds no food, and so has no score to correct."""

    status, code, title = 409, "already_decided", "This photo cannot be reviewed"


class ImageConflict(InvalidRequest):
    """The object store holds another object under this photo's key."""

    status, code, title = 409, "image_conflict", "Something else is stored in this photo's place"


class BodyTooLarge(InvalidRequest):
    """More bytes than allowed; found while reading, not after."""

    status, code, title = 413, "body_too_large", "The photo is too large"


class UnsupportedMediaType(InvalidRequest):
    """The bytes are not of an image type we read, whatever the header said."""

    status, code, title = 415, "unsupported_media_type", "This is not an image type we read"


class InvalidField(InvalidRequest):
    """A field of the profile, query or review is out of its range."""

    status, code, title = 422, "invalid_field", "A field of the request is not valid"


class BadImage(FoodDXError):
    """The bytes claim to be an image and cannot be decoded as one."""

    status, code, title = 422, "image_unreadable", "The photo cannot be read"


class EmptyImage(BadImage):
    """Zero bytes."""

    code, title = "image_empty", "The photo is empty"


class TruncatedImage(BadImage):
    """The data ends before the picture does."""

    code, title = "image_truncated", "The photo is cut short"


class AnimatedImage(BadImage):
    """More than one frame."""

    code, title = "image_animated", "Animations cannot be scored"


class TooManyPixels(BadImage):
    """Width × height over the cap; known from the header, nothing was decoded."""

    code, title = "image_too_many_pixels", "The photo has too many pixels"


class TooFewPixels(BadImage):
    """A side too short to hold a meal."""

    code, title = "image_too_few_pixels", "The photo is too small to score"


class Overloaded(FoodDXError):
    """A queue is full. Said at once, rather than a time-out later."""

    status, code, title, retryable = 429, "overloaded", "Too many photos at once", True


class RateLimited(Overloaded):
    """The tenant has made as many requests as it may for now."""

    code, title = "rate_limited", "Too many requests"


class NeedsObjectStorage(FoodDXError):
    """A presigned upload where photos are kept in a folder."""

    status, code, title = 501, "needs_object_storage", "This call needs S3 as the object store"


class ResultsUnavailable(FoodDXError):
    """Redis cannot be reached; nothing was acknowledged."""

    status, code, title, retryable = 503, "results_unavailable", "The result store cannot be reached", True


class ImagesUnavailable(FoodDXError):
    """The object store cannot be reached; nothing was acknowledged."""

    status, code, title, retryable = 503, "images_unavailable", "The image store cannot be reached", True


class CredentialsUnavailable(FoodDXError):
    """The tenant's credentials cannot be opened, so neither can its store; nothing was acknowledged."""

    status, code, retryable = 503, "credentials_unavailable", True
    title = "The tenant's credentials cannot be opened"


class QueueUnavailable(FoodDXError):
    """The intake's queue cannot be reached; nothing was acknowledged."""

    status, code, title, retryable = 503, "queue_unavailable", "The intake queue cannot be reached", True


class ScorerUnavailable(FoodDXError):
    """No replica could score the photo; a retry goes to another."""

    status, code, title, retryable = 503, "scorer_unavailable", "The photo could not be scored just now", True


class DeadlineExceeded(FoodDXError):
    """The request's time budget is spent."""

    status, code, title, retryable = 504, "deadline_exceeded", "The time budget is spent", True


def tree() -> list[type[FoodDXError]]:
    """Every class of the tree, root first, depth first."""

    def walk(cls: type[FoodDXError]) -> list[type[FoodDXError]]:
        return [cls, *(found for sub in cls.__subclasses__() for found in walk(sub))]

    return walk(FoodDXError)


def by_code(code: str, detail: str = "", *, retry_after_s: float | None = None) -> FoodDXError:
    """The error for ``code``: how a rejection that crossed a process becomes an exception again."""
    for cls in tree():
        if cls.code == code:
            return cls(detail, retry_after_s=retry_after_s)
    return FoodDXError(detail)
