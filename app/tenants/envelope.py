"""A tenant's credentials, sealed: envelope encryption with AES-256-GCM, and its text form. Pure.

The credentials are encrypted under a data key of their own; a key service (app/tenants/kms.py) has wrapped
that data key for this tenant. docs/credentials.md describes the format and what it protects against. The
Lambda function imports this module at its cold start, so it imports little.

What can be told apart, and no more, is a class each::

    CredentialsError
    ├── UnknownVersion    unknown_version    written by a version that is not known here
    ├── Damaged           damaged            some byte is not as it was sealed
    ├── WrongTenant       wrong_tenant       whole, but another tenant's
    ├── KeysDenied        keys_denied        the key service answers: no
    └── KeysUnavailable   keys_unavailable   the key service does not answer; try again
"""

from __future__ import annotations

import json
import os
import re
from binascii import a2b_base64, b2a_base64, crc32
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple, TypeGuard

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
"""Length of a data key: AES-256."""
MAX_PLAIN_BYTES: Final = 4096
"""Length of the credentials as JSON, at most."""
MAX_CHARACTERS: Final = 8192
"""Length of the text form, at most: nothing longer is looked at."""
_NONCE_BYTES = 12
_TAG_BYTES = 16
_MAX_WRAPPED_BYTES = 1024  # AWS KMS makes 184 bytes of a 256-bit data key

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION = re.compile(r"fdxc([0-9]{1,4})\.")
_VERSION_1 = "fdxc1"


class CredentialsError(Exception):
    """Credentials that cannot be had. Says which of a few things it was, and nothing about them.

    It takes no argument, so that no secret, ciphertext, path or name of a key can get into it.
    """

    code: ClassVar[str] = "credentials"
    text: ClassVar[str] = "These credentials cannot be read"

    def __init__(self) -> None:
        super().__init__(self.text)

    def __reduce__(self) -> tuple[type[CredentialsError], tuple[()]]:
        return type(self), ()


class UnknownVersion(CredentialsError):
    """Sealed in a form that this version does not know."""

    code, text = "unknown_version", "These credentials are in a form that is not known here"


class Damaged(CredentialsError):
    """No sealed credentials, or changed since they were sealed."""

    code, text = "damaged", "These credentials are not as they were sealed"


class WrongTenant(CredentialsError):
    """Sealed for another tenant than the one who asks."""

    code, text = "wrong_tenant", "These credentials are not this tenant's"


class KeysDenied(CredentialsError):
    """The key service refuses: not permitted, or the wrapping key is disabled or gone."""

    code, text = "keys_denied", "The key service refuses to open these credentials"


class KeysUnavailable(CredentialsError):
    """The key service cannot be reached, is too slow or too busy. Another try may succeed."""

    code, text = "keys_unavailable", "The key service cannot be reached just now"


def is_tenant(name: object) -> TypeGuard[str]:
    """Whether this is a tenant's id: 1 to 63 of a–z, 0–9 and, not at first, the hyphen."""
    return isinstance(name, str) and _TENANT.fullmatch(name) is not None


class Envelope(NamedTuple):
    """Sealed credentials.

    Attributes:
        tenant: whose.
        wrapped: the data key as the key service wrapped it, 1 to 1024 bytes.
        nonce: 12 bytes, random.
        ciphertext: the credentials as JSON, encrypted, and the tag of 16 bytes.
    """

    tenant: str
    wrapped: bytes
    nonce: bytes
    ciphertext: bytes

    @classmethod
    def parse(cls, text: str, tenant: str) -> Envelope:
        """Read the text form for the tenant who asks.

        Raises:
            UnknownVersion: another version wrote it.
            Damaged: it is none, or its checksum says that it was changed.
            WrongTenant: it says that it is another tenant's.
        """
        if len(text) > MAX_CHARACTERS:
            raise Damaged
        version = _VERSION.match(text)
        if version and version[1] != "1":
            raise UnknownVersion
        body, _, check = text.rpartition(".")
        fields = body.split(".")
        if not version or len(fields) != 5 or check != _check(body):
            raise Damaged
        try:
            envelope = cls(fields[1], *map(from_base64url, fields[2:]))
        except ValueError:
            raise Damaged from None
        if (
            not is_tenant(envelope.tenant)
            or not 0 < len(envelope.wrapped) <= _MAX_WRAPPED_BYTES
            or len(envelope.nonce) != _NONCE_BYTES
            or not _TAG_BYTES < len(envelope.ciphertext) <= MAX_PLAIN_BYTES + _TAG_BYTES
        ):
            raise Damaged
        if envelope.tenant != tenant:
            raise WrongTenant
        return envelope

    def __str__(self) -> str:
        body = ".".join((_VERSION_1, self.tenant, *(base64url(field) for field in self[1:])))
        return f"{body}.{_check(body)}"

    def __repr__(self) -> str:
        return f"Envelope(tenant={self.tenant!r}, …)"


def seal(credentials: Mapping[str, str], tenant: str, key: bytes | bytearray, wrapped: bytes) -> Envelope:
    """Encrypt ``credentials`` for ``tenant``.

    Args:
        credentials: names and secrets, together at most MAX_PLAIN_BYTES as JSON.
        tenant: its id.
        key: a data key of 32 bytes. Take a fresh one each time: then no nonce can ever repeat under a key.
        wrapped: the same key, wrapped for this tenant.

    Raises:
        ValueError: no tenant's id, not an object of strings, or too long. It quotes nothing.
    """
    if not is_tenant(tenant):
        raise ValueError("a tenant's id is 1 to 63 of a–z, 0–9 and hyphen")
    if not credentials or not _are_strings(credentials):
        raise ValueError("credentials are an object of strings, with at least one")
    plain = json.dumps(dict(credentials), separators=(",", ":"), sort_keys=True).encode()
    if len(plain) > MAX_PLAIN_BYTES:
        raise ValueError(f"credentials are at most {MAX_PLAIN_BYTES} bytes of JSON")
    nonce = os.urandom(_NONCE_BYTES)
    return Envelope(tenant, wrapped, nonce, AESGCM(key).encrypt(nonce, plain, _bound_to(tenant)))


def unseal(envelope: Envelope, key: bytes | bytearray) -> dict[str, str]:
    """Decrypt the credentials with their data key of 32 bytes.

    Raises:
        Damaged: it is not the data key of this envelope, or a byte of the envelope was changed.
    """
    try:
        plain = AESGCM(key).decrypt(envelope.nonce, envelope.ciphertext, _bound_to(envelope.tenant))
        credentials = json.loads(plain)
    except (InvalidTag, ValueError):
        raise Damaged from None
    if not isinstance(credentials, dict) or not _are_strings(credentials):
        raise Damaged
    return credentials


def wipe(key: bytearray) -> None:
    """Overwrite a key. The library's own copies are out of reach, so this shortens a life and ends none."""
    key[:] = bytes(len(key))


def _bound_to(tenant: str) -> bytes:
    """The additional data: a ciphertext opens for this tenant and this version only."""
    return f"{_VERSION_1}.{tenant}".encode()


def _are_strings(credentials: Mapping[str, str]) -> bool:
    return all(isinstance(word, str) for pair in credentials.items() for word in pair)


def _check(body: str) -> str:
    """CRC-32: tells every single changed byte, before the key service is asked. What protects is the tag."""
    return base64url(crc32(body.encode("utf-8", "surrogatepass")).to_bytes(4, "big"))


def base64url(data: bytes | bytearray) -> str:
    """base64url without padding (RFC 4648)."""
    return b2a_base64(data, newline=False).decode().rstrip("=").replace("+", "-").replace("/", "_")


def from_base64url(text: str) -> bytes:
    """The reverse.

    Raises:
        ValueError: ``base64url`` does not write this: other characters, or bits that would be lost.
    """
    data = a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    if base64url(data) != text:
        raise ValueError("not the base64url of anything")
    return data
