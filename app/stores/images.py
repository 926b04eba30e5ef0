"""Photos in an object store: a folder on one machine, S3 in production; the same calls for both (obstore)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from app.errors import ImagesUnavailable, NotFound

if TYPE_CHECKING:
    from obstore.store import ObjectStore


def image_key(tenant: str, sha256: str) -> str:
    """The key of a photo: by its content, so the same photo twice is one object."""
    return f"{tenant}/{sha256[:2]}/{sha256}"


def _sync(path: Path, root: Path) -> None:
    """Force a file and the folders above it, up to ``root``, to the disk; the object store does not."""
    for step in (path, *path.parents):
        handle = os.open(step, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if step == root:
            return


class ImageStore:
    """Put, get and delete photos by key. Every failure of the store is ImagesUnavailable."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def at(cls, location: str) -> ImageStore:
        """The store at ``location``: a folder, made if it is missing and closed to other users."""
        try:
            Path(location).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ImagesUnavailable(f"The photo folder cannot be made: {error.strerror}") from error
        return cls(LocalStore(prefix=location, automatic_cleanup=True), Path(location))

    async def put(self, key: str, data: bytes) -> None:
        """Write ``data``. It is all there or not at all, and when this returns it survives a power cut."""
        try:
            await obstore.put_async(self._store, key, data)
            if self._folder:
                await asyncio.to_thread(_sync, self._folder / key, self._folder)
        except (BaseError, OSError) as error:
            raise ImagesUnavailable from error

    async def get(self, key: str) -> bytes:
        """Read a photo.

        Raises:
            NotFound: there is no such photo.
            ImagesUnavailable: the store failed.
        """
        try:
            answer = await obstore.get_async(self._store, key)
            return bytes(await answer.bytes_async())
        except FileNotFoundError:
            raise NotFound("This photo is not stored.") from None
        except (BaseError, OSError) as error:
            raise ImagesUnavailable from error

    async def delete(self, key: str) -> None:
        """Delete a photo; one that is not there is no error."""
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise ImagesUnavailable from error

    async def ping(self) -> None:
        """Raise ImagesUnavailable unless the store takes a write: a readable but full disk is no store."""
        await self.put(".ready", b"")
