"""The credential decryptor as an AWS Lambda function: sealed credentials in, credentials out.

An event ``{"tenant": "…", "credentials": "<envelope>"}`` is answered with ``{"credentials": {…}}`` or with
``{"error": {"code": "…", "message": "…"}}``; the codes are those of app/tenants/envelope.py, ``bad_request``
and ``internal``. docs/credentials.md says how to deploy it and what each error means.

Everything here is on the path of a cold start: little is imported. Nothing is logged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from app.tenants.envelope import (
    KEY_BYTES,
    MAX_CHARACTERS,
    CredentialsError,
    Damaged,
    Envelope,
    from_base64url,
    is_tenant,
    unseal,
    wipe,
)

if TYPE_CHECKING:
    from app.tenants.kms import KeyService

TTL_S: Final = 300.0
"""How long an unwrapped data key serves warm calls: so long may a key that KMS no longer gives still work."""
SIZE: Final = 128
"""How many of them are kept."""
DATA_KEYS: Final = "FOODDX_DATA_KEYS"
"""Variable of the data keys that come with the function, if any; see docs/credentials.md before using it."""


class BadRequest(CredentialsError):
    """The event is not what the function takes."""

    code, text = "bad_request", "The event needs a tenant and its sealed credentials"


class DataKeys:
    """The data keys unwrapped last, each for its time. What leaves is overwritten."""

    def __init__(
        self, ttl_s: float = TTL_S, size: int = SIZE, clock: Callable[[], float] = time.time
    ) -> None:
        # Wall clock: between two calls Lambda freezes the function, and a monotonic clock may stand still.
        self._ttl_s, self._size, self._clock = ttl_s, size, clock
        self._kept: dict[tuple[str, bytes], tuple[float, bytearray]] = {}

    def get(self, tenant: str, wrapped: bytes) -> bytearray | None:
        """The data key, if it was unwrapped for this tenant and not long ago."""
        until, key = self._kept.pop((tenant, wrapped), (0.0, bytearray()))
        if not self._clock() < until:
            wipe(key)
            return None
        self._kept[tenant, wrapped] = until, key  # to the end: what is used stays longest
        return key

    def put(self, tenant: str, wrapped: bytes, key: bytearray) -> None:
        """Keep ``key``, which is the cache's from now on."""
        while len(self._kept) >= self._size:
            wipe(self._kept.pop(next(iter(self._kept)))[1])
        self._kept[tenant, wrapped] = self._clock() + self._ttl_s, key


class Decryptor:
    """Opens envelopes: with a data key that came with the function, one of a call before, or from KMS."""

    def __init__(
        self,
        keys: Callable[[], KeyService],
        given: Mapping[str, bytes] | None = None,
        kept: DataKeys | None = None,
    ) -> None:
        """``keys`` makes the key service: now or, where data keys are ``given``, when one is missing."""
        self._make_keys = keys
        self._given = given or {}
        self._kept = kept or DataKeys()
        self._keys = None if given else keys()

    def answer(self, event: object) -> dict[str, object]:
        """What the function answers to ``event``. Never raises."""
        try:
            return {"credentials": self._open(*_asked(event))}
        except CredentialsError as error:
            return {"error": {"code": error.code, "message": error.text}}
        except Exception:  # noqa: BLE001 - Lambda would log the error's text, and that may quote the event
            return {"error": {"code": "internal", "message": "Something went wrong on our side"}}

    def _open(self, tenant: str, text: str) -> dict[str, str]:
        envelope = Envelope.parse(text, tenant)
        if tenant in self._given:
            try:
                return unseal(envelope, self._given[tenant])
            except Damaged:
                pass  # or sealed anew since the function was deployed: KMS knows
        key = self._kept.get(tenant, envelope.wrapped)
        if key is not None:
            return unseal(envelope, key)
        key = self._service().unwrap(envelope.wrapped, tenant)
        try:
            credentials = unseal(envelope, key)
        except Damaged:
            wipe(key)
            raise
        self._kept.put(tenant, envelope.wrapped, key)
        return credentials

    def _service(self) -> KeyService:
        if self._keys is None:
            self._keys = self._make_keys()
        return self._keys


def _asked(event: object) -> tuple[str, str]:
    """Tenant and envelope of an event."""
    tenant, text = map(event.get, ("tenant", "credentials")) if isinstance(event, dict) else (None, None)
    if not is_tenant(tenant) or not isinstance(text, str) or not 0 < len(text) <= MAX_CHARACTERS:
        raise BadRequest
    return tenant, text


def _given(variable: str) -> dict[str, bytes]:
    """Data keys by tenant, from ``tenant=key tenant=key …`` with keys in base64url.

    Raises:
        ValueError: it is not that. The text quotes nothing.
    """
    found = {}
    for entry in variable.split():
        tenant, _, text = entry.partition("=")
        try:
            key = from_base64url(text)
        except ValueError:
            key = b""
        if not is_tenant(tenant) or len(key) != KEY_BYTES:
            raise ValueError(f"{DATA_KEYS} is not a list of tenant=key")
        found[tenant] = key
    return found


def _kms() -> KeyService:
    from app.tenants.kms import KmsKeys  # noqa: PLC0415 - with data keys given, http and ssl are never loaded

    return KmsKeys.from_environment(os.environ)


@cache
def _started() -> Decryptor:
    # Out of the environment: nothing that lists it later shows the keys.
    return Decryptor(_kms, _given(os.environ.pop(DATA_KEYS, "")))


def handler(event: object, context: object) -> dict[str, object]:
    """What Lambda calls."""
    return _started().answer(event)


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    _started()  # Lambda gives a function more CPU while it starts than in its calls
