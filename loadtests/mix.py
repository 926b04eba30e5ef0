"""What the load test sends: photos of several sizes, repeated ones, broken ones, and profiles."""

from __future__ import annotations

import json
import random
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.photos import Photo, new_token

# Megapixels: weight. Most clients reduce a photo before they send it; some send what the camera wrote.
SIZES = "0.2=10,0.8=40,2=30,5=10,12=10"
DUPLICATES = 0.15
# How many of the photos sent last a duplicate is picked from.
REMEMBERED = 64

PROFILES: tuple[dict[str, Any], ...] = (
    {"goals": ["less-sugar", "blood-glucose"]},
    {"goals": ["less-salt"], "diet": ["vegetarian"]},
    {"goals": ["more-fibre"], "avoid": ["peanut", "tree-nut"]},
    {"goals": ["weight"], "diet": ["vegan", "gluten-free"]},
)


@dataclass(frozen=True)
class Shot:
    """A photo to send. A duplicate has a label of its own: it is answered faster than its size would be."""

    label: str
    jpeg: bytes


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused, and how: any other answer, 200 included, is a failure."""

    label: str
    content: bytes
    status: int
    code: str


def parse_sizes(text: str) -> dict[float, float]:
    """``0.8=40,12=10`` → megapixels and their weights.

    Raises:
        ValueError: not of this form, no size at all, a size or the sum of the weights not above zero.
    """
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{text!r} is not a list like 0.8=40,12=10")
    sizes = {float(size): float(weight) for size, weight in pairs}
    if min(sizes) <= 0 or min(sizes.values()) < 0 or sum(sizes.values()) <= 0:
        raise ValueError(f"{text!r} needs sizes above zero, and weights of which one at least is above zero")
    return sizes


class Mix:
    """Endless photos: sizes by weight, and a share of exact duplicates of photos sent before."""

    def __init__(
        self, photos: Mapping[Photo, float], duplicates: float = DUPLICATES, seed: int | None = None
    ) -> None:
        self._photos, self._weights = list(photos), list(photos.values())
        self._duplicates = duplicates
        self._rng = random.Random(seed)  # noqa: S311 - which photo comes next is no secret
        self._sent: deque[tuple[Photo, bytes]] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Shot]:
        return self

    def __next__(self) -> Shot:
        """The next photo; the first is never a duplicate."""
        if self._sent and self._rng.random() < self._duplicates:
            photo, token = self._rng.choice(self._sent)
            return Shot("duplicate", photo.with_token(token))
        (photo,) = self._rng.choices(self._photos, self._weights)
        token = new_token()
        self._sent.append((photo, token))
        return Shot(photo.label, photo.with_token(token))


def bad_files(photo: Photo) -> Sequence[BadFile]:
    """The files a real client sends by mistake: a broken upload, the wrong file, nothing."""
    whole = photo.unique()
    return (
        BadFile("truncated", whole[: len(whole) // 2], 422, "image_truncated"),
        BadFile("text", b"This is the recipe, not the photo.\n" * 20, 415, "unsupported_media_type"),
        BadFile("empty", b"", 422, "image_empty"),
    )


def multipart(jpeg: bytes, profile: Mapping[str, Any]) -> tuple[bytes, str]:
    """The body and Content-Type of a form with ``image`` and ``profile`` (RFC 7578)."""
    boundary = secrets.token_hex(16)
    fields = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="profile"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(profile)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="meal.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = b"".join((fields.encode(), jpeg, f"\r\n--{boundary}--\r\n".encode()))
    return body, f"multipart/form-data; boundary={boundary}"
