"""The webhook: a signed POST to a URL that a tenant chose. See docs/webhooks.md.

Signatures are those of Standard Webhooks 1.0 (standardwebhooks.com), symmetric.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import socket
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Final
from urllib.parse import urljoin

import httpx

from app.notices.targets import IPAddress, Target, parse_target, public_address

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what a secret begins with
WEBHOOK_SECRET: Final = "webhook_secret"  # noqa: S105 - its name
"""Under which a secret is among a tenant's credentials."""
TOLERANCE_S: Final = 300
"""How far the time of a signature may be from the receiver's."""
TOTAL_S: Final = 5.0
"""How long a notice may take, redirects included."""
MAX_REDIRECTS: Final = 3

# Of several addresses the first may be dead, and the others want their turn.
_CONNECT_S = 2.0
# A look-up cannot be cancelled. In threads of their own, slow name servers hold up notices and nothing else.
_RESOLVER_THREADS = 4
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_FOLLOWED = {307, 308}  # the others would turn a POST into a GET
_RETRYABLE_4XX = {408, 425, 429}


class NoticeFailed(Exception):
    """A notice that its receiver did not take.

    Attributes:
        reason: what happened, in words that are safe to show: no secret, no address, nothing of the answer
            but its status.
        retryable: whether the same notice may be taken later.
    """

    def __init__(self, reason: str, retryable: bool) -> None:
        super().__init__(reason, retryable)
        self.reason = reason
        self.retryable = retryable

    def __str__(self) -> str:
        return self.reason


def signing_key(secret: str) -> bytes:
    """The key in a secret ``whsec_<base64>``, 24 to 64 bytes.

    Raises:
        ValueError: it is no such secret. The message does not repeat it.
    """
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook's secret is {SECRET_PREFIX} and 24 to 64 bytes in base64")
    return key


def sign(secret: str, notice_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers that sign a notice.

    Args:
        secret: ``whsec_<base64>``.
        notice_id: the same for every try of a notice: 1 to 64 letters, digits, hyphens and underscores.
        timestamp: of this try, in Unix seconds.
        body: as it is sent, byte for byte.

    Raises:
        ValueError: the secret or the id is malformed.
    """
    if not _ID.fullmatch(notice_id):
        raise ValueError("a notice's id is 1 to 64 letters, digits, hyphens and underscores")
    return {
        "webhook-id": notice_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{_signature(signing_key(secret), notice_id, str(timestamp), body)}",
    }


def verify(
    secret: str, headers: Mapping[str, str], body: bytes, now: float, tolerance_s: float = TOLERANCE_S
) -> bool:
    """Whether a notice was signed with ``secret``, and at about ``now``. What a receiver does.

    Args:
        secret: ``whsec_<base64>``.
        headers: of the request; the case of their names does not matter.
        body: as it came, byte for byte.
        now: the receiver's clock, in Unix seconds.
        tolerance_s: how far the two clocks may be apart.

    Raises:
        ValueError: the secret is malformed.
    """
    key = signing_key(secret)
    given = {name.lower(): value for name, value in headers.items()}
    notice_id, timestamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not _TIMESTAMP.fullmatch(timestamp) or abs(now - int(timestamp)) > tolerance_s:
        return False
    expected = f"v1,{_signature(key, notice_id, timestamp, body)}".encode()
    # Several while a secret is being changed.
    signatures = given.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(signature.encode(), expected) for signature in signatures)


def _signature(key: bytes, notice_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{notice_id}.{timestamp}.".encode() + body
    return b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Webhook:
    """Sends notices. For one event loop; any number of notices at a time.

    The host is looked up once, every address it has must be allowed, and the connection goes to one of those
    addresses and no other: a name that changes its mind between check and use (DNS rebinding) gains nothing.
    The certificate is checked for the name all the same. No proxy, no cookies, no connection used twice: one
    that was opened for a tenant's host must not carry what another's is told.

    Args:
        is_allowed: which addresses may be called; another one is for tests that receive on this machine.
        tls: whose certificates are trusted; None: those of the public authorities.
        timeout_s: how long a notice may take, redirects included.
    """

    def __init__(
        self,
        *,
        is_allowed: Callable[[IPAddress], bool] = public_address,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TOTAL_S,
    ) -> None:
        self._is_allowed = is_allowed
        self._timeout_s = timeout_s
        # The transport alone: a client above it would keep cookies, read bodies and follow redirects.
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls or httpx.create_ssl_context(trust_env=False),
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._resolvers = ThreadPoolExecutor(_RESOLVER_THREADS, "webhook-resolver")

    async def aclose(self) -> None:
        """Let go of connections and threads."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()

    async def post(self, url: str, secret: str, event: bytes, *, id: str) -> None:  # noqa: A002 - webhook-id
        """Send a notice once; returns when its receiver has taken it (2xx).

        Args:
            url: as check_webhook accepts it.
            secret: ``whsec_<base64>``.
            event: JSON.
            id: the same for every try of a notice, see sign.

        Raises:
            NoticeFailed: it was not taken, or there is no telling.
        """
        try:
            signature = sign(secret, id, int(time.time()), event)
        except ValueError as error:
            raise NoticeFailed(str(error), retryable=False) from None
        headers = signature | {
            "content-type": "application/json",
            "user-agent": "FoodDX",
            "connection": "close",
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._deliver(url, headers, event)
        except TimeoutError:
            raise NoticeFailed(f"no answer within {self._timeout_s:g} s", retryable=True) from None

    async def _deliver(self, url: str, headers: dict[str, str], event: bytes) -> None:
        for _ in range(1 + MAX_REDIRECTS):
            status, location = await self._send(self._target(url), headers, event)
            if 200 <= status < 300:
                return
            if status not in _FOLLOWED or not location:
                raise NoticeFailed(
                    f"the answer was {status}", retryable=status >= 500 or status in _RETRYABLE_4XX
                )
            try:
                url = urljoin(url, location)
            except ValueError:
                raise NoticeFailed("the redirect leads nowhere", retryable=False) from None
        raise NoticeFailed(f"more than {MAX_REDIRECTS} redirects", retryable=False)

    def _target(self, url: str) -> Target:
        try:
            return parse_target(url, self._is_allowed)
        except ValueError as error:
            raise NoticeFailed(f"the URL {error}", retryable=False) from None

    async def _send(self, target: Target, headers: dict[str, str], event: bytes) -> tuple[int, str]:
        """One request; the status and the Location of its answer. The body is never read."""
        wait_s = self._timeout_s
        certified = True
        for address in await self._addresses(target):
            request = httpx.Request(
                "POST",
                httpx.URL(scheme="https", host=str(address), port=target.port, raw_path=target.path.encode()),
                headers=headers | {"host": target.authority},
                content=event,
                extensions={
                    "sni_hostname": target.host,
                    "timeout": {"connect": _CONNECT_S, "read": wait_s, "write": wait_s, "pool": wait_s},
                },
            )
            try:
                response = await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                certified = "CERTIFICATE_VERIFY_FAILED" not in str(error)
                continue
            except (httpx.TransportError, OSError):
                raise NoticeFailed("the connection broke", retryable=True) from None
            try:
                return response.status_code, response.headers.get("location", "")
            finally:
                await response.aclose()
        words = "no connection" if certified else "the certificate is not valid for this host"
        raise NoticeFailed(words, retryable=True)

    async def _addresses(self, target: Target) -> list[IPAddress]:
        """Where the host is, every address allowed."""
        if target.address:
            return [target.address]
        look_up = partial(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._resolvers, look_up)
        except OSError:
            raise NoticeFailed("the host's name has no address", retryable=True) from None
        addresses = [ip_address(sockaddr[0]) for *_, sockaddr in found]
        if not all(map(self._is_allowed, addresses)):
            raise NoticeFailed("the host's name leads to an address that is not public", retryable=False)
        return addresses
