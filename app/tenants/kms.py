"""The key services that wrap data keys: AWS KMS, or a key file on one machine. The same three calls.

KMS is called by plain HTTPS, signed here with AWS Signature Version 4. On top of Lambda's runtime, importing
botocore's signer and credentials took 89 ms of CPU; hmac, hashlib and base64 took 7, and http.client with ssl
19 (Python 3.11, the least of 15 fresh processes each, on a busy machine). At a cold start that decides. The
tests hold the signature against botocore's. On a server botocore's chain finds the credentials, and no more.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import http.client
import json
import os
import ssl
import time
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.tenants.envelope import (
    KEY_BYTES,
    KeysDenied,
    KeysUnavailable,
    WrongTenant,
    is_tenant,
    wipe,
)

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S: Final = 1.0
"""For connecting, and for each wait on the socket after that. KMS answers within some ten milliseconds."""
TRIES: Final = 2
KEY_FILE: Final = "credential_keys"
"""Name of the file of LocalKeys in the data folder."""
_PAUSE_S = 0.1  # before the second try, at most
_MAX_ANSWER_BYTES = 65_536
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_WRONG_TENANT = frozenset({"InvalidCiphertextException"})
# Refusals that pass by themselves. Any other below 500 stays until somebody acts.
_BUSY = frozenset({"ThrottlingException", "LimitExceededException", "RequestLimitExceeded"})


class KeyService(Protocol):
    """Wraps data keys, each for one tenant. The calls block; each is safe in any thread.

    Every call may raise KeysDenied and KeysUnavailable.
    """

    def generate(self, tenant: str) -> tuple[bytearray, bytes]:
        """A new data key of 32 bytes: as it is, and wrapped for ``tenant``."""

    def unwrap(self, wrapped: bytes, tenant: str) -> bytearray:
        """The data key of 32 bytes.

        Raises:
            WrongTenant: it was wrapped for another tenant, or changed: a key service answers both alike.
        """

    def rewrap(self, wrapped: bytes, tenant: str) -> bytes:
        """The same data key under the newest wrapping key. Raises as ``unwrap`` does."""


class AwsCredentials(Protocol):
    """What signs a call: an access key, and the token that comes with a temporary one."""

    @property
    def access_key(self) -> str:
        """Its public name."""

    @property
    def secret_key(self) -> str:
        """What signs."""

    @property
    def token(self) -> str | None:
        """Of a temporary key."""


class EnvironmentCredentials:
    """Those that AWS Lambda puts into the function's environment. Neither repr nor str shows them."""

    __slots__ = ("access_key", "secret_key", "token")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.access_key = environ["AWS_ACCESS_KEY_ID"]
        self.secret_key = environ["AWS_SECRET_ACCESS_KEY"]
        self.token = environ.get("AWS_SESSION_TOKEN")

    def itself(self) -> AwsCredentials:
        """They stay what they are as long as the environment lives, so whoever asks gets the same."""
        return self


def session_credentials() -> Callable[[], AwsCredentials]:
    """The standard chain: environment, profile, container, instance role; renewed as they run out.

    What is given raises KeysUnavailable where there are none, or they cannot be renewed.
    """
    import botocore.exceptions  # noqa: PLC0415 - the Lambda function has no botocore, and its import is slow
    import botocore.session  # noqa: PLC0415

    session = botocore.session.get_session()

    def current() -> AwsCredentials:
        try:
            found = session.get_credentials()
            frozen: AwsCredentials | None = found and found.get_frozen_credentials()
        except botocore.exceptions.BotoCoreError:
            raise KeysUnavailable from None
        if frozen is None:
            raise KeysUnavailable
        return frozen

    return current


def signed(
    headers: Mapping[str, str], body: bytes, region: str, credentials: AwsCredentials, at: time.struct_time
) -> dict[str, str]:
    """``headers`` of a POST to ``/`` of KMS, with what AWS Signature Version 4 adds to them.

    Args:
        headers: those to sign, lower case, ``host`` among them; no value begins or ends with a space.
        body: what is posted.
        region: of the endpoint.
        credentials: who signs.
        at: when, in UTC.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", at)
    scope = f"{moment[:8]}/{region}/kms/aws4_request"
    token = {"x-amz-security-token": credentials.token} if credentials.token else {}
    every = {**headers, "x-amz-date": moment, **token}
    names = ";".join(sorted(every))
    lines = "".join(f"{name}:{every[name]}\n" for name in sorted(every))
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(request.encode()).hexdigest()
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
    who = f"Credential={credentials.access_key}/{scope}"
    every["authorization"] = f"AWS4-HMAC-SHA256 {who}, SignedHeaders={names}, Signature={signature}"
    return every


class KmsKeys:
    """AWS KMS. The encryption context of every call is ``{"tenant": <id>}``."""

    def __init__(
        self,
        region: str,
        credentials: Callable[[], AwsCredentials],
        *,
        key_id: str | None = None,
        endpoint: str | None = None,
        ca_bundle: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Nothing is called yet.

        Args:
            region: of the key.
            credentials: asked at each call.
            key_id: id, ARN or alias of the key that wraps. Unwrapping needs none: KMS finds it.
            endpoint: URL; KMS of the region where none is given.
            ca_bundle: file of the certificates to trust; the system's where none is given.
            timeout_s: for connecting, and for each wait on the socket after that.

        Raises:
            ValueError: the endpoint would send data keys over a network in the clear.
            OSError: the file of certificates cannot be read.
        """
        suffix = ".cn" if region.startswith("cn-") else ""
        url = urlsplit(endpoint or f"https://kms.{region}.amazonaws.com{suffix}")
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
            raise ValueError("the endpoint of KMS is https, or http on this machine")
        self._host, self._port, self._netloc = url.hostname or "", url.port, url.netloc
        self._tls = ssl.create_default_context(cafile=ca_bundle) if url.scheme == "https" else None
        self._region, self._credentials, self._key_id = region, credentials, key_id
        self._timeout_s = timeout_s

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        credentials: Callable[[], AwsCredentials] | None = None,
        *,
        key_id: str | None = None,
    ) -> KmsKeys:
        """As AWS's own variables say: region, endpoint, certificates and, unless given, credentials.

        Raises:
            ValueError: no region, or an endpoint that is not safe.
            KeyError: no credentials are given, and there are none.
        """
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        if not region:
            raise ValueError("AWS_REGION says where the keys are")
        found = credentials or EnvironmentCredentials(environ).itself
        return cls(
            region,
            found,
            key_id=key_id,
            endpoint=environ.get("AWS_ENDPOINT_URL_KMS") or environ.get("AWS_ENDPOINT_URL"),
            ca_bundle=environ.get("AWS_CA_BUNDLE"),
        )

    def generate(self, tenant: str) -> tuple[bytearray, bytes]:
        """A new data key, by ``GenerateDataKey``."""
        answer = self._call(
            "GenerateDataKey",
            {"KeyId": self._wrapping_key(), "KeySpec": "AES_256", "EncryptionContext": _context(tenant)},
        )
        return _data_key(answer), _blob(answer, "CiphertextBlob")

    def unwrap(self, wrapped: bytes, tenant: str) -> bytearray:
        """The data key, by ``Decrypt``."""
        asked = {"CiphertextBlob": _base64(wrapped), "EncryptionContext": _context(tenant)}
        return _data_key(self._call("Decrypt", asked))

    def rewrap(self, wrapped: bytes, tenant: str) -> bytes:
        """The same data key under ``key_id``, by ``ReEncrypt``: it does not leave KMS."""
        asked = {
            "CiphertextBlob": _base64(wrapped),
            "DestinationKeyId": self._wrapping_key(),
            "SourceEncryptionContext": _context(tenant),
            "DestinationEncryptionContext": _context(tenant),
        }
        return _blob(self._call("ReEncrypt", asked), "CiphertextBlob")

    def _wrapping_key(self) -> str:
        if not self._key_id:
            raise ValueError("a KMS key is needed to wrap with")
        return self._key_id

    def _call(self, action: str, asked: Mapping[str, object]) -> dict[str, object]:
        """One call, tried again once where that may help: each of the three may be done twice."""
        body = json.dumps(asked).encode()
        for left in reversed(range(TRIES)):
            try:
                status, answer = self._post(action, body)
            except (OSError, http.client.HTTPException, ValueError):
                status, answer = 503, {}
            error = str(answer.get("__type", "")).rpartition("#")[2]
            if status == 200:
                return answer
            if status < 500 and error not in _BUSY and status != 429:
                raise WrongTenant if error in _WRONG_TENANT else KeysDenied
            if left:
                time.sleep(_PAUSE_S * (1 + os.urandom(1)[0] / 255) / 2)
        raise KeysUnavailable

    def _post(self, action: str, body: bytes) -> tuple[int, dict[str, object]]:
        """Status and JSON of one POST. A connection each: it is seldom, and Lambda freezes idle ones."""
        headers = {
            "content-type": "application/x-amz-json-1.1",
            "host": self._netloc,
            "x-amz-target": f"TrentService.{action}",
        }
        sent = signed(headers, body, self._region, self._credentials(), time.gmtime())
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        )
        try:
            connection.request("POST", "/", body, sent)
            response = connection.getresponse()
            answer = json.loads(response.read(_MAX_ANSWER_BYTES) or b"{}")
        finally:
            connection.close()
        return response.status, answer if isinstance(answer, dict) else {}


def _context(tenant: str) -> dict[str, str]:
    if not is_tenant(tenant):
        raise WrongTenant
    return {"tenant": tenant}


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _blob(answer: Mapping[str, object], name: str) -> bytes:
    try:
        return b64decode(str(answer[name]), validate=True)
    except (KeyError, NotBase64):
        raise KeysUnavailable from None  # 200 and no such field: not KMS, or not at its best


def _data_key(answer: Mapping[str, object]) -> bytearray:
    key = bytearray(_blob(answer, "Plaintext"))
    if len(key) != KEY_BYTES:
        raise KeysUnavailable
    return key


class LocalKeys:
    """A key file in the place of KMS, for one machine: whoever can read it can read all credentials.

    A line is a wrapping key of 32 bytes in base64. The last one wraps; each unwraps what it has wrapped. The
    file is made at the first need, for its owner only, and read at each call, so that every process sees a
    new key at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def generate(self, tenant: str) -> tuple[bytearray, bytes]:
        """A new data key."""
        key = bytearray(os.urandom(KEY_BYTES))
        return key, self._wrap(key, tenant)

    def unwrap(self, wrapped: bytes, tenant: str) -> bytearray:
        """The data key. KeysDenied: the key that wrapped it is not in the file."""
        context = json.dumps(_context(tenant)).encode()
        key_id, nonce, sealed = wrapped[:8], wrapped[8:20], wrapped[20:]
        for wrapping_key in self._keys():
            if _id_of(wrapping_key) == key_id:
                try:
                    return bytearray(AESGCM(wrapping_key).decrypt(nonce, sealed, context))
                except (InvalidTag, ValueError):
                    raise WrongTenant from None
        raise KeysDenied

    def rewrap(self, wrapped: bytes, tenant: str) -> bytes:
        """The same data key under the newest key of the file."""
        key = self.unwrap(wrapped, tenant)
        try:
            return self._wrap(key, tenant)
        finally:
            wipe(key)

    def add_key(self) -> None:
        """From now on a new key wraps; those before go on unwrapping what they wrapped."""
        with self._alone():
            self._write([*(self._keys() if self._path.exists() else []), os.urandom(KEY_BYTES)])

    def _wrap(self, key: bytearray, tenant: str) -> bytes:
        context, nonce = json.dumps(_context(tenant)).encode(), os.urandom(12)
        with self._alone():
            if not self._path.exists():
                self._write([os.urandom(KEY_BYTES)])
        wrapping_key = self._keys()[-1]
        return _id_of(wrapping_key) + nonce + AESGCM(wrapping_key).encrypt(nonce, key, context)

    def _keys(self) -> list[bytes]:
        """Oldest first, at least one."""
        try:
            keys = [b64decode(line, validate=True) for line in self._path.read_bytes().split()]
        except PermissionError:
            raise KeysDenied from None
        except (OSError, NotBase64):
            raise KeysUnavailable from None
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise KeysUnavailable
        return keys

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file: a key that is overwritten takes credentials along."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
                os.fsync(folder)
            finally:
                os.close(folder)
        except PermissionError:
            raise KeysDenied from None
        except OSError:
            raise KeysUnavailable from None

    def _write(self, keys: list[bytes]) -> None:
        """Replace the file, whole: a key must survive a power cut if what it wraps may survive it."""
        draft = self._path.with_name(f".{self._path.name}-{os.urandom(8).hex()}")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "w") as lines:
                lines.writelines(f"{_base64(key)}\n" for key in keys)
                lines.flush()
                os.fsync(file)
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)


def key_service(credential_key: str, data_dir: Path) -> KeyService:
    """What wraps data keys here. Nothing is called or made yet.

    Args:
        credential_key: id, ARN or alias of a KMS key, used as AWS's own variables say; "": a key file wraps.
        data_dir: where the key file is.

    Raises:
        ValueError: see ``KmsKeys.from_environment``.
        OSError: the file of certificates cannot be read.
    """
    if credential_key:
        return KmsKeys.from_environment(os.environ, session_credentials(), key_id=credential_key)
    return LocalKeys(data_dir / KEY_FILE)


def _id_of(wrapping_key: bytes) -> bytes:
    """8 bytes that tell which key it was. The keys are random, so a hash gives nothing of them away."""
    return hashlib.sha256(b"fooddx wrapping key" + wrapping_key).digest()[:8]
