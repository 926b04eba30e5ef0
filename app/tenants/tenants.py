"""Tenants: whose API key opens whose photos, and what each may use. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.tenants.keys import hash_key, new_api_key

DEFAULT_TENANT = "default"
"""Whoever holds the key of the settings, or the one made at first start. It is in no registry."""

UPLOADS: Final = "uploads"
"""No tenant's id: under this the photos lie that were sent to the store itself, see app/stores/images.py."""


def _not_reserved(tenant_id: str) -> str:
    if tenant_id == UPLOADS:
        raise ValueError(f"{UPLOADS} is where photos arrive: choose another")
    return tenant_id


TenantId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$"), AfterValidator(_not_reserved)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Part):
    """How often a tenant may call; None: as often as it likes.

    Attributes:
        per_second: requests a second on average; as many as that may come at once, and one at least.
        per_day: requests a day, which begins at midnight UTC.
    """

    per_second: Annotated[float, Field(gt=0, le=100_000)] | None = None
    per_day: Annotated[int, Field(ge=1)] | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.per_second is not None or self.per_day is not None


class ApiKey(_Part):
    """What is kept of an API key: never the key.

    Attributes:
        sha256: of the key, hex.
        made_at: when.
        ends_at: from when on it is refused; None: it stays.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    made_at: datetime
    ends_at: datetime | None = None


class Tenant(_Part):
    """One tenant, as it is stored.

    Attributes:
        id: part of every key of its photos and results, so it never changes.
        keys: at most two, the newest first.
        limits: how often it may call.
        disabled: no key of it opens anything. Its photos and results stay.
        store: ``s3://bucket/prefix`` where its photos are; "": where the service keeps everybody's.
        models: that judge its photos, see models/manifest.py; empty: those that serve.
        webhook: https URL that is told of results nobody waits for; "": none.
        credentials: sealed, see app/tenants/credentials.py; "": none. Of its store those of S3Credentials, of
            its webhook ``webhook_secret``.
        made_at: when.
    """

    id: TenantId
    keys: tuple[ApiKey, ...] = ()
    limits: Limits = Limits()
    disabled: bool = False
    store: str = ""
    models: tuple[str, ...] = ()
    webhook: str = ""
    credentials: Annotated[str, Field(repr=False)] = ""
    made_at: datetime

    @classmethod
    def first(cls, api_key: str, tenant_id: str = DEFAULT_TENANT) -> Self:
        """The tenant that a service has before anybody registered one."""
        made_at = datetime.fromtimestamp(0, UTC)  # the same wherever it is made
        return cls(id=tenant_id, keys=(ApiKey(sha256=hash_key(api_key), made_at=made_at),), made_at=made_at)

    def with_new_key(self, now: datetime, overlap: timedelta) -> tuple[Self, str]:
        """The tenant with one more API key, and that key, which nobody can show again.

        The key before stays valid for ``overlap``, so that clients can change over; one still older ends.
        """
        api_key = new_api_key()
        before = [
            key.model_copy(update={"ends_at": min(key.ends_at or now + overlap, now + overlap)})
            for key in self.keys[:1]
        ]
        keys = (ApiKey(sha256=hash_key(api_key), made_at=now), *before)
        return self.model_copy(update={"keys": keys}), api_key

    def valid_keys(self, now: datetime) -> tuple[ApiKey, ...]:
        """Those that open something now."""
        if self.disabled:
            return ()
        return tuple(key for key in self.keys if key.ends_at is None or now < key.ends_at)


class Directory:
    """Which key is whose. Immutable; holds hashes only, so it may travel and appear in a crash report."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._tenants = {tenant.id: tenant for tenant in tenants}
        self._owner = {key.sha256: tenant for tenant in self._tenants.values() for key in tenant.keys}

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """All tenants, the disabled included."""
        return tuple(self._tenants.values())

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(self._tenants)

    def get(self, tenant_id: str) -> Tenant | None:
        """A tenant by its id."""
        return self._tenants.get(tenant_id)

    def owner(self, authorization: str | None, now: datetime) -> Tenant | None:
        """The tenant of an ``Authorization: Bearer …`` header, or None.

        A key is looked up by its hash. What the time of that tells is something about the hash of what was
        sent, and nothing about any key; a found one is compared in constant time all the same.
        """
        scheme, _, api_key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not api_key.strip():
            return None
        given = hash_key(api_key.strip())
        tenant = self._owner.get(given)
        known = tenant.valid_keys(now) if tenant else ()
        return tenant if any(hmac.compare_digest(key.sha256, given) for key in known) else None
