"""Where each tenant's photos are: with everybody's, or in a bucket and under credentials of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from app.errors import CredentialsUnavailable, ImagesUnavailable
from app.stores.images import ImageStore
from app.tenants.tenants import Directory, Tenant

if TYPE_CHECKING:
    from app.stores.s3 import S3Credentials
    from app.tenants.credentials import Credentials, Secrets

_OPEN: Final = 256
"""Of how many tenants the own stores are kept open, with their connections."""
_WAIT_S: Final = 0.9
"""How long a request waits for the key service: as for a store, less than the budget of a photo."""
_FOR_A_STORE: Final = ("access_key_id", "secret_access_key", "session_token", "region", "endpoint")


class _Opened(NamedTuple):
    store: str
    credentials: str
    images: ImageStore


class TenantImages:
    """The image store of a tenant. Call it with the tenant's id."""

    def __init__(
        self,
        shared: ImageStore,
        directory: Callable[[], Directory],
        credentials: Callable[[], Credentials],
    ) -> None:
        """Open nothing yet.

        Args:
            shared: of those who have none of their own, and of tenants nobody knows.
            directory: who there is at the moment.
            credentials: what opens the tenants' credentials; called at the first need.
        """
        self.shared = shared
        self._directory = directory
        self._credentials = credentials
        self._opened: dict[str, _Opened] = {}

    async def __call__(self, tenant_id: str) -> ImageStore:
        """The tenant's store.

        Raises:
            CredentialsUnavailable: its credentials cannot be opened.
            ImagesUnavailable: there can be no such store, or what was opened are no keys to one.
        """
        tenant = self._directory().get(tenant_id)
        if tenant is None or not tenant.store:
            return self.shared
        # Asked for each time: what was taken away is noticed once the cache has forgotten it.
        secrets = await self.secrets(tenant)
        opened = self._opened.pop(tenant_id, None)
        if opened is None or (opened.store, opened.credentials) != (tenant.store, tenant.credentials):
            opened = _Opened(tenant.store, tenant.credentials, _open(tenant, secrets))
        while len(self._opened) >= _OPEN:
            del self._opened[next(iter(self._opened))]
        self._opened[tenant_id] = opened  # to the end: what is used stays longest
        return opened.images

    async def secrets(self, tenant: Tenant) -> Secrets | None:
        """What is sealed in the tenant's record; None where nothing is. Raises as above."""
        if not tenant.credentials:
            return None
        credentials = self._credentials()
        try:
            async with asyncio.timeout(_WAIT_S):
                return await credentials.get(tenant.id, tenant.credentials)
        except TimeoutError:  # they go on being opened, for whoever asks next
            raise CredentialsUnavailable("The key service is slow.", retry_after_s=1) from None


def _open(tenant: Tenant, secrets: Secrets | None) -> ImageStore:
    try:
        return ImageStore.at(tenant.store, _for_a_store(secrets))
    except ValueError:  # pydantic's too; neither is quoted, for it may hold a secret
        raise ImagesUnavailable(f"The store of {tenant.id} cannot be used as it is configured.") from None


def _for_a_store(secrets: Secrets | None) -> S3Credentials | None:
    """The keys to a bucket; None, where the credentials are for something else: then AWS's chain counts."""
    from app.stores.s3 import S3Credentials  # noqa: PLC0415 - loads what a folder spares

    if secrets is None or "access_key_id" not in secrets:
        return None
    return S3Credentials.model_validate(
        {name: secrets.reveal(name) for name in _FOR_A_STORE if name in secrets}
    )


def open_credentials(credential_key: str, data_dir: Path) -> Credentials:
    """What opens tenants' credentials: with a KMS key, or with the key file in the data folder."""
    from app.tenants.credentials import Credentials  # noqa: PLC0415 - only for tenants that have some
    from app.tenants.kms import key_service  # noqa: PLC0415

    return Credentials(key_service(credential_key, data_dir))
