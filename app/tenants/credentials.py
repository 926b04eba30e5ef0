"""A tenant's credentials on the request path and on the command line: sealed, opened, kept, rotated."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, NoReturn

from app.errors import CredentialsUnavailable
from app.tenants.envelope import (
    CredentialsError,
    Envelope,
    KeysUnavailable,
    base64url,
    seal,
    unseal,
    wipe,
)
from app.tenants.kms import KeyService

TTL_S: Final = 300.0
"""How long opened credentials are used: so long may a key that the key service no longer gives still work."""
SIZE: Final = 1024
"""Of how many tenants they are kept."""
_THREADS = 4  # that wait for the key service; apart from asyncio's own, which an outage must not fill


class Secrets:
    """Opened credentials. Only ``reveal`` shows one: no repr, text, log, copy or pickle does."""

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = dict(secrets)

    def reveal(self, name: str) -> str:
        """One secret.

        Raises:
            KeyError: there is none of this name. It quotes the name.
        """
        return self._secrets[name]

    def __contains__(self, name: object) -> bool:
        return name in self._secrets

    def __repr__(self) -> str:
        return "Secrets(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets stay in the process that opened them")


def encrypt(credentials: Mapping[str, str], tenant: str, keys: KeyService) -> str:
    """Seal credentials under a fresh data key; the text form of the envelope.

    Raises:
        ValueError: see ``seal``.
        CredentialsError: the key service refuses or is away.
    """
    key, wrapped = keys.generate(tenant)
    try:
        return str(seal(credentials, tenant, key, wrapped))
    finally:
        wipe(key)


def decrypt(text: str, tenant: str, keys: KeyService) -> dict[str, str]:
    """The credentials in an envelope, in the clear.

    Raises:
        CredentialsError: see app/tenants/envelope.py.
    """
    envelope = Envelope.parse(text, tenant)
    key = keys.unwrap(envelope.wrapped, tenant)
    try:
        return unseal(envelope, key)
    finally:
        wipe(key)


def rotate(text: str, tenant: str, keys: KeyService) -> str:
    """The envelope with its data key wrapped anew, by the newest wrapping key; nothing is decrypted here.

    The envelope before stays readable as long as its wrapping key is there. Raises as ``decrypt`` does.
    """
    envelope = Envelope.parse(text, tenant)
    return str(envelope._replace(wrapped=keys.rewrap(envelope.wrapped, tenant)))


def reseal(text: str, tenant: str, keys: KeyService) -> str:
    """The same credentials under a fresh data key: after one may have leaked. Raises as ``decrypt`` does."""
    return encrypt(decrypt(text, tenant, keys), tenant, keys)


def data_keys(envelopes: Mapping[str, str], keys: KeyService) -> str:
    """The data keys of tenants in the clear, as the Lambda function takes them with it.

    Read in docs/credentials.md what that gives up. Raises as ``decrypt`` does.

    Args:
        envelopes: the text of each tenant's.
        keys: what unwraps.
    """
    entries = []
    for tenant, text in envelopes.items():
        key = keys.unwrap(Envelope.parse(text, tenant).wrapped, tenant)
        entries.append(f"{tenant}={base64url(key)}")
        wipe(key)
    return " ".join(entries)


class _Kept(NamedTuple):
    digest: bytes
    until: float
    secrets: Secrets


class Credentials:
    """The tenants' credentials: opened at the first need, kept for a time, and opened once however many ask.

    What is kept is kept for one envelope. A rotated or changed one is opened anew, and replaces it.
    """

    def __init__(
        self,
        keys: KeyService,
        *,
        ttl_s: float = TTL_S,
        size: int = SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet.

        Args:
            keys: what unwraps data keys. Called in threads of its own.
            ttl_s: seconds that opened credentials are used.
            size: of how many tenants they are kept; who was not heard of longest goes first.
            clock: seconds.
        """
        self._keys, self._ttl_s, self._size, self._clock = keys, ttl_s, size, clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="credentials")
        self._kept: dict[str, _Kept] = {}
        self._opening: dict[tuple[str, bytes], asyncio.Task[Secrets | CredentialsError]] = {}

    async def get(self, tenant: str, envelope: str) -> Secrets:
        """The credentials in a tenant's envelope.

        Raises:
            CredentialsUnavailable: they cannot be opened. Its detail says which of the errors of
                app/tenants/envelope.py it was.
        """
        digest = hashlib.sha256(envelope.encode("utf-8", "surrogatepass")).digest()
        kept = self._kept.pop(tenant, None)
        if kept and kept.digest == digest and self._clock() < kept.until:
            self._kept[tenant] = kept  # to the end: what is used stays longest
            return kept.secrets
        # One task for all who ask meanwhile. It goes on when one of them gives up.
        task = self._opening.get((tenant, digest))
        if task is None:
            task = asyncio.create_task(self._open(tenant, envelope, digest))
            self._opening[tenant, digest] = task
            task.add_done_callback(lambda _: self._opening.pop((tenant, digest)))
        found = await asyncio.shield(task)
        if isinstance(found, CredentialsError):
            raise answer(found)
        return found

    async def _open(self, tenant: str, envelope: str, digest: bytes) -> Secrets | CredentialsError:
        """The secrets, or what keeps them closed: as a value, for a traceback would hold the key's frames."""
        loop = asyncio.get_running_loop()
        try:
            opened = await loop.run_in_executor(self._threads, decrypt, envelope, tenant, self._keys)
        except CredentialsError as error:
            return type(error)()
        while len(self._kept) >= self._size:
            del self._kept[next(iter(self._kept))]
        secrets = Secrets(opened)
        self._kept[tenant] = _Kept(digest, self._clock() + self._ttl_s, secrets)
        return secrets


def answer(error: CredentialsError) -> CredentialsUnavailable:
    """What the service says where it needs credentials and cannot have them."""
    return CredentialsUnavailable(
        f"{error.text} ({error.code}).", retry_after_s=1 if isinstance(error, KeysUnavailable) else None
    )
