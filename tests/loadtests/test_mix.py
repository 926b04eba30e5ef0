"""What the load test sends, and in which proportions."""

from __future__ import annotations

import io
import json
from collections import Counter
from email import message_from_bytes
from itertools import islice

import pytest
from PIL import Image

from app.errors import tree
from app.schemas import Profile
from loadtests.mix import DUPLICATES, PROFILES, SIZES, Mix, bad_files, multipart, parse_sizes
from loadtests.photos import Photo, make_photo

SMALL = Photo("small", b"<", b">")
LARGE = Photo("large", b"<<", b">>")


def test_sizes_come_by_their_weights() -> None:
    mix = Mix({SMALL: 3, LARGE: 1}, duplicates=0, seed=1)
    labels = Counter(shot.label for shot in islice(mix, 4000))
    assert labels["small"] / labels["large"] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_duplicates_come_by_their_share_and_are_exact(share: float) -> None:
    shots = list(islice(Mix({SMALL: 1}, duplicates=share, seed=2), 1000))
    duplicates = [index for index, shot in enumerate(shots) if shot.label == "duplicate"]
    assert len(duplicates) / len(shots) == pytest.approx(share, abs=0.05)
    assert all(shots[index].jpeg in {shot.jpeg for shot in shots[:index]} for index in duplicates[:20])


def test_everything_but_duplicates_is_new() -> None:
    shots = islice(Mix({SMALL: 1, LARGE: 1}, seed=3), 2000)
    fresh = [shot.jpeg for shot in shots if shot.label != "duplicate"]
    assert len(set(fresh)) == len(fresh)


def test_the_default_mix_runs_from_0_2_to_12_megapixels() -> None:
    sizes = parse_sizes(SIZES)
    assert (min(sizes), max(sizes), DUPLICATES) == (0.2, 12, 0.15)


def test_sizes_are_read_with_their_weights() -> None:
    assert parse_sizes("0.8=40,12=0") == {0.8: 40, 12: 0}


@pytest.mark.parametrize("text", ["", "0.8", "0.8=", "a=1", "0=1", "-1=1", "1=-1", "1=0", "1=2=3"])
def test_sizes_that_make_no_mix_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_sizes(text)


def test_bad_files_ask_for_answers_the_service_has() -> None:
    answers = {(error.status, error.code) for error in tree()}
    assert {(bad.status, bad.code) for bad in bad_files(SMALL)} <= answers


def test_bad_files_are_bad() -> None:
    truncated, text, empty = bad_files(make_photo(0.2))
    with Image.open(io.BytesIO(truncated.content)) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    assert text.content.isascii()
    assert empty.content == b""


@pytest.mark.parametrize("profile", PROFILES)
def test_multipart_holds_photo_and_profile(profile: dict[str, object]) -> None:
    jpeg = make_photo(0.2).unique()
    body, media_type = multipart(jpeg, profile)
    form = message_from_bytes(f"Content-Type: {media_type}\r\n\r\n".encode() + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
    assert json.loads(parts["profile"].get_payload()) == profile
    assert jpeg in body
    assert parts["image"].get_content_type() == "image/jpeg"


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_are_ones_the_service_takes(profile: dict[str, object]) -> None:
    Profile.model_validate(profile)
