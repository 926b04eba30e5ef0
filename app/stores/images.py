"""Photos in an object store: a folder on one machine, S3 in production (s3.py); the same calls for both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from app.errors import BodyTooLarge, ImagesUnavailable, NotFound
from app.stores.disk import to_disk

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

    from app.stores.s3 import S3Credentials

READY_KEY: Final = ".ready"
"""What readiness writes; it belongs to no tenant."""

_CHUNK_BYTES: Final = 2**20
_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store knows of an object.

    Attributes:
        size: bytes.
        etag: as the store gave it, quotes included; other content, other etag.
        version: in a bucket that keeps versions, else None.
        modified: when it was written.
    """

    size: int
    etag: str
    version: str | None
    modified: datetime


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object: its bytes, and what the store said of these very bytes."""

    data: bytes
    stored: Stored


def image_key(tenant: str, sha256: str) -> str:
    """The key of a photo: by its content, so the same photo twice is one object."""
    return f"{tenant}/{sha256[:2]}/{sha256}"


def plain_key(key: str) -> str:
    """The key itself, where a store would take it as it is written.

    Raises:
        NotFound: it holds ``..`` or empty parts, which a store would refuse or, worse, tidy up: then a key
            that does not begin with a tenant's name could lead to that tenant's photo.
    """
    if not is_plain(key):
        raise NotFound("This photo is not stored.")
    return key


def is_plain(key: str) -> bool:
    """Whether a key, or the beginning of one, is taken by every store as it is written."""
    return key.isprintable() and not any(part in {"", ".", ".."} for part in key.split("/"))


class ImageStore(ABC):
    """Put, get and delete photos by key. Every failure of the store is ImagesUnavailable.

    Attributes:
        lands_late: whether a write that failed may still arrive, when nobody waits for it any more.
    """

    lands_late: ClassVar[bool] = False

    @staticmethod
    def at(location: str, credentials: S3Credentials | None = None, *, kms_key_id: str = "") -> ImageStore:
        """The store at ``location``.

        Args:
            location: a folder, made if it is missing and closed to other users; or ``s3://bucket/prefix``.
            credentials: of the bucket; None: those that AWS's own chain finds.
            kms_key_id: the KMS key that S3 encrypts photos with; "": a key of S3's own.

        Raises:
            ValueError: no such location or endpoint can be; the text says why.
            ImagesUnavailable: the folder cannot be made.
        """
        if location.startswith("s3://"):
            from app.stores.s3 import Bucket, S3Images  # noqa: PLC0415 - it builds on this module

            return S3Images(Bucket.at(location, credentials, kms_key_id=kms_key_id), credentials)
        return FolderImages(Path(location))

    @abstractmethod
    async def put(self, key: str, data: bytes) -> None:
        """Write ``data``. It is all there or not at all, and when this returns it survives a power cut.

        S3 never replaces an object: the same content is left as it is, other content is an error.
        """

    @abstractmethod
    async def fetch(self, key: str, max_bytes: int | None = None) -> Fetched:
        """Read an object that somebody else may have put there.

        Args:
            key: of the object.
            max_bytes: the most that is read; the size is looked at before and counted meanwhile.

        Raises:
            NotFound: there is no such object.
            BodyTooLarge: it has more bytes.
            ImagesUnavailable: the store failed.
        """

    async def get(self, key: str) -> bytes:
        """Read a photo; see fetch for what is raised."""
        return (await self.fetch(key)).data

    @abstractmethod
    async def head(self, key: str) -> Stored:
        """What the store knows of an object; NotFound when there is none."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Delete a photo; one that is not there is no error."""

    @abstractmethod
    async def ping(self) -> None:
        """Raise ImagesUnavailable unless the store takes a write."""


class FolderImages(ImageStore):
    """Photos in a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ImagesUnavailable(f"The photo folder cannot be made: {error.strerror}") from error
        self._folder = folder
        self._store: ObjectStore = LocalStore(prefix=str(folder), automatic_cleanup=True)

    async def put(self, key: str, data: bytes) -> None:
        """See ImageStore. Here the last writer wins: under a key by content, all write the same."""
        try:
            await asyncio.to_thread(_write, self._folder / plain_key(key), data, self._folder)
        except OSError as error:
            raise ImagesUnavailable from error

    async def fetch(self, key: str, max_bytes: int | None = None) -> Fetched:
        """See ImageStore."""
        with _there():
            return await read_object(self._store, key, max_bytes)

    async def head(self, key: str) -> Stored:
        """See ImageStore."""
        with _there():
            return stored(await obstore.head_async(self._store, plain_key(key)))

    async def delete(self, key: str) -> None:
        """See ImageStore."""
        with contextlib.suppress(NotFound), _there():
            await obstore.delete_async(self._store, plain_key(key))

    async def ping(self) -> None:
        """See ImageStore: a readable but full disk is no store."""
        await self.put(READY_KEY, b"")


def stored(meta: ObjectMeta) -> Stored:
    """What obstore says of an object, in our words."""
    return Stored(
        size=meta["size"],
        etag=meta["e_tag"] or "",
        version=meta["version"],
        modified=meta["last_modified"],
    )


async def read_object(store: ObjectStore, key: str, max_bytes: int | None) -> Fetched:
    """Read an object of at most ``max_bytes``; BodyTooLarge as soon as it is known to have more."""
    answer = await obstore.get_async(store, plain_key(key))
    found = stored(answer.meta)
    _check_size(found.size, max_bytes)
    chunks: list[bytes] = []
    read = 0
    async for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
        read += len(chunk)
        _check_size(read, max_bytes)
        chunks.append(bytes(chunk))
    return Fetched(b"".join(chunks), found)


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise BodyTooLarge(f"The photo under this key has more than {max_bytes} bytes.")


@contextlib.contextmanager
def _there() -> Iterator[None]:
    """Make what asking a folder for an object can raise one of our errors, without its path."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("This photo is not stored.") from None
    except (BaseError, OSError) as error:
        raise ImagesUnavailable from error


def _write(path: Path, data: bytes, root: Path) -> None:
    """Write a file whole or not at all, and force it and the folders above it, up to ``root``, to the disk.

    The object store does not do the second; all of it in one visit to a thread costs half of both in turn.
    """
    for tries_left in reversed(range(_TRIES)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_into(path, data)
            break
        except FileNotFoundError:  # whoever deleted the last photo in it, deleted the folder just then
            if not tries_left:
                raise
    for folder in path.parents:
        to_disk(folder)
        if folder == root:
            return


def _write_into(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}#{secrets.token_hex(8)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(data)
            file.flush()
            os.fsync(handle)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
