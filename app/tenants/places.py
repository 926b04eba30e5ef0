"""Whose object is it? Tenants share a bucket, or have one of their own; a key alone does not say. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from app.tenants.tenants import UPLOADS, Directory, Tenant

_SCHEME: Final = "s3://"
# Of before the year 2527: a later one is none of ours, and its moment may be past what a date can be.
_UUID7: Final = re.compile(r"0[0-9a-f]{7}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_KEPT: Final = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")


class Place(NamedTuple):
    """An object and whose it is; ``key`` is as the tenant's store has it."""

    tenant: Tenant
    key: str


def upload_key(tenant_id: str, result_id: str) -> str:
    """Where a photo arrives whose result will have this id."""
    return f"{UPLOADS}/{tenant_id}/{result_id}"


def is_upload_of(tenant_id: str, key: str) -> bool:
    """Whether a photo only arrives under this key: once it is kept under its content, this goes."""
    return key.startswith(f"{UPLOADS}/{tenant_id}/")


def result_id_of(key: str) -> str | None:
    """The id that an upload's result will have; None for an object that nobody was given an id for."""
    name = key.rpartition("/")[2]
    return name if key.startswith(f"{UPLOADS}/") and _UUID7.fullmatch(name) else None


def is_kept(tenant_id: str, key: str) -> bool:
    """Whether the service itself put this photo here, see ``image_key``."""
    prefix = f"{tenant_id}/"
    return key.startswith(prefix) and _KEPT.fullmatch(key, len(prefix)) is not None


class Places:
    """Finds the tenant of an object, by the one rule that every way in goes by.

    An object belongs to the deepest store that contains it. In a store of one tenant's own every key is that
    tenant's; in one that several share, as the service's own is, ``<tenant>/…`` and ``uploads/<tenant>/…``.
    """

    def __init__(self, shared: str, directory: Callable[[], Directory]) -> None:
        """Know the rule's two sides.

        Args:
            shared: the store of whoever has none of its own.
            directory: who there is at the moment.
        """
        self._shared = shared
        self._directory = directory

    def of(self, bucket: str, object_key: str) -> Place | None:
        """The object that an event names; None when nobody's. ``bucket`` "": the shared store's own keys."""
        path = f"{bucket}/{object_key}" if bucket else f"{_path(self._shared)}/{object_key}"
        tenants = self._directory().tenants
        stores = {_path(self._store(tenant)) for tenant in tenants} | {_path(self._shared)}
        containing = [store for store in stores if path.startswith(f"{store}/")]
        if not containing:
            return None
        deepest = max(containing, key=len)
        key = path[len(deepest) + 1 :]
        residents = {tenant.id: tenant for tenant in tenants if _path(self._store(tenant)) == deepest}
        if deepest != _path(self._shared) and len(residents) == 1:
            return Place(next(iter(residents.values())), key)
        first, _, rest = key.partition("/")
        named = rest.partition("/")[0] if first == UPLOADS else first
        return Place(residents[named], key) if named in residents else None

    def owns(self, tenant_id: str, key: str) -> bool:
        """Whether an object of the tenant's store, by its key there, is this tenant's."""
        place = self.of(*self.address(tenant_id, key))
        return place is not None and place.tenant.id == tenant_id

    def address(self, tenant_id: str, key: str) -> tuple[str, str]:
        """An object of the tenant's store as bucket and whole key; a folder has no bucket."""
        tenant = self._directory().get(tenant_id)
        store = self._store(tenant) if tenant else self._shared
        if not store.startswith(_SCHEME):
            return "", key
        bucket, _, object_key = f"{_path(store)}/{key}".partition("/")
        return bucket, object_key

    def _store(self, tenant: Tenant) -> str:
        return tenant.store or self._shared


def _path(store: str) -> str:
    """One text for one store, however it is written; see ``Bucket.at``."""
    if not store.startswith(_SCHEME):
        return store.rstrip("/")
    bucket, _, prefix = store.removeprefix(_SCHEME).partition("/")
    return f"{bucket}/{prefix.strip('/')}".rstrip("/")
