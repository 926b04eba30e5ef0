"""Photos in a folder: whole or not at all, and every failure of the disk is one public error."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ImagesUnavailable, NotFound
from app.stores.images import ImageStore, image_key
from tests.photos import coffee_jpeg

KEY = image_key("tenant", "5a" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "images"


@pytest.fixture
def images(folder: Path) -> ImageStore:
    return ImageStore.at(str(folder))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestPhotos:
    @pytest.mark.parametrize("data", [coffee_jpeg(), b"", bytes(range(256)) * 40_000])
    def test_come_back_as_they_were(self, images, folder, data):
        async def story() -> None:
            await images.put(KEY, data)
            assert await images.get(KEY) == data

        asyncio.run(story())
        assert files(folder) == {KEY}

    def test_a_second_put_replaces_the_first(self, images):
        async def story() -> None:
            await images.put(KEY, b"first")
            await images.put(KEY, b"second")
            assert await images.get(KEY) == b"second"

        asyncio.run(story())

    def test_a_missing_one_is_not_found(self, images):
        with pytest.raises(NotFound):
            asyncio.run(images.get(KEY))

    def test_a_deleted_one_leaves_nothing_not_even_folders(self, images, folder):
        async def story() -> None:
            await images.put(KEY, b"photo")
            await images.delete(KEY)
            await images.delete(KEY)
            with pytest.raises(NotFound):
                await images.get(KEY)

        asyncio.run(story())
        assert list(folder.iterdir()) == []

    def test_neighbours_are_left_alone(self, images, folder):
        others = {image_key("tenant", "5a" * 31 + "00"), image_key("other", "5a" * 32)}

        async def story() -> None:
            for key in {KEY, *others}:
                await images.put(key, b"photo")
            await images.delete(KEY)

        asyncio.run(story())
        assert files(folder) == others

    def test_many_at_once(self, images, folder):
        keys = [image_key("tenant", f"{n:064x}") for n in range(50)]

        async def story() -> None:
            await asyncio.gather(*(images.put(key, key.encode()) for key in keys))
            assert await asyncio.gather(*map(images.get, keys)) == [key.encode() for key in keys]

        asyncio.run(story())
        assert files(folder) == set(keys)


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.text("0123456789abcdef", min_size=64))
def test_a_key_belongs_to_one_tenant_and_one_content(one: str, two: str):
    assert (image_key("a", one) == image_key("a", two)) == (one == two)
    assert image_key("a", one) != image_key("b", one)
    assert image_key("a", one).startswith("a/")


class TestTheFolder:
    def test_is_made_for_its_owner_only(self, images, folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_that_cannot_be_made_says_so_without_its_path(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ImagesUnavailable) as failed:
            ImageStore.at(str(tmp_path / "file" / "images"))
        assert str(tmp_path) not in failed.value.detail

    @pytest.mark.parametrize(
        "call",
        [
            lambda images: images.put(KEY, b"photo"),
            lambda images: images.get(KEY),
            lambda images: images.delete(KEY),
            lambda images: images.ping(),
        ],
    )
    def test_that_is_lost_is_unavailable_without_its_path(
        self, images, folder, call: Callable[[ImageStore], Coroutine[Any, Any, object]]
    ):
        folder.rmdir()
        folder.write_text("no folder any more")
        with pytest.raises(ImagesUnavailable) as failed:
            asyncio.run(call(images))
        assert str(folder) not in failed.value.detail
        assert failed.value.retryable

    def test_that_works_is_ready(self, images):
        asyncio.run(images.ping())
