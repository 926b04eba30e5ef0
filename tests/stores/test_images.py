"""Photos in a folder: whole or not at all, and every failure of the disk is one public error."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BodyTooLarge, ImagesUnavailable, NeedsObjectStorage, NotFound
from app.stores import images as images_module
from app.stores.images import ImageStore, image_key, is_plain, read_object
from app.stores.uploads import upload_form
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

    def test_one_that_cannot_be_written_whole_leaves_nothing(self, images, folder, monkeypatch):
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(images_module.os, "fsync", full)
        with pytest.raises(ImagesUnavailable):
            asyncio.run(images.put(KEY, b"photo"))
        assert files(folder) == set()

    def test_puts_and_deletes_that_cross_lose_no_photo(self, images, folder):
        # The last photo of a folder takes the folder with it, just when the next one is written there.
        neighbour = KEY[:-1] + "b"

        async def story() -> None:
            for _ in range(60):
                await images.put(KEY, b"goes")
                await asyncio.gather(images.delete(KEY), images.put(neighbour, b"stays"))
                assert await images.get(neighbour) == b"stays"
                await images.delete(neighbour)

        asyncio.run(story())
        assert files(folder) == set()

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


class TestFetching:
    def test_tells_what_was_read(self, images):
        async def story() -> None:
            before = datetime.now(UTC)
            await images.put(KEY, b"photo")
            fetched = await images.fetch(KEY, 5)
            assert fetched.data == b"photo"
            assert fetched.stored == await images.head(KEY)
            assert fetched.stored.size == 5
            assert abs((fetched.stored.modified - before).total_seconds()) < 60
            await images.put(KEY, b"other")
            assert (await images.head(KEY)).etag != fetched.stored.etag

        asyncio.run(story())

    def test_stops_where_there_is_more_than_asked_for(self, images):
        async def story() -> None:
            await images.put(KEY, b"photo")
            with pytest.raises(BodyTooLarge, match="more than 4 bytes"):
                await images.fetch(KEY, 4)

        asyncio.run(story())

    def test_what_is_missing_is_not_found(self, images):
        for ask in (images.fetch, images.head):
            with pytest.raises(NotFound):
                asyncio.run(ask(KEY))

    @pytest.mark.parametrize(("declared", "read"), [(10**9, 0), (3, 3)])
    def test_believes_no_size(self, monkeypatch, declared: int, read: int):
        """Declared too large: nothing is read. Declared small, and endless: no more than the cap."""
        served: list[bytes] = []

        class Answer:
            meta = MappingProxyType(
                {"size": declared, "e_tag": "", "version": None, "last_modified": datetime.now(UTC)}
            )

            async def stream(self, min_chunk_size: int) -> AsyncIterator[bytes]:
                while True:
                    served.append(b"xx")
                    yield served[-1]

        async def get_async(store: object, key: str) -> Answer:
            return Answer()

        monkeypatch.setattr(images_module.obstore, "get_async", get_async)
        with pytest.raises(BodyTooLarge):
            asyncio.run(read_object(None, KEY, 5))
        assert len(served) == read

    @pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", "a/../b", "../a", "a/./b", "a\nb", "a\0b"])
    def test_a_key_that_a_store_would_tidy_up_leads_nowhere(self, images, folder, key: str):
        assert not is_plain(key)
        for call in (images.get(key), images.head(key), images.put(key, b"photo")):
            with pytest.raises(NotFound):
                asyncio.run(call)
        asyncio.run(images.delete(key))
        assert files(folder) == set()

    def test_a_form_to_upload_with_needs_a_bucket(self, images):
        form = upload_form(images, "a/b", media_type="image/jpeg", max_bytes=1, now=datetime.now(UTC))
        with pytest.raises(NeedsObjectStorage):
            asyncio.run(form)


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
