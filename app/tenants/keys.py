"""API keys: made at first start, kept as a hash by everything that serves."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings

DEFAULT_TENANT = "default"


def hash_key(api_key: str) -> str:
    """SHA-256 of a key, hex. Keys are 192 random bits, so a slow hash would protect nothing more."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def api_key_of(settings: Settings) -> str:
    """The key that was set, else the one in the data folder."""
    return settings.api_key.get_secret_value() if settings.api_key else ensure_api_key(settings.data_dir)


def ensure_api_key(data_dir: Path) -> str:
    """The key in the data folder, made at the first call and readable by its owner only."""
    path = data_dir / "api_key"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(
            "w", dir=data_dir, prefix=".api_key-"
        ) as file:  # made with mode 0600
            file.write(f"fdx_{secrets.token_urlsafe(24)}\n")
            file.flush()
            # A link appears with its content or, where another process was first, not at all.
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text().strip()


@dataclass(frozen=True, slots=True)
class Keyring:
    """Which key is whose. Holds hashes only, so it may travel between processes and appear in a crash report.

    Attributes:
        tenants: tenant by the SHA-256 of its key, hex.
    """

    tenants: dict[str, str]

    @classmethod
    def of(cls, api_key: str, tenant: str = DEFAULT_TENANT) -> Keyring:
        """A ring with one key."""
        return cls({hash_key(api_key): tenant})

    def tenant(self, authorization: str | None) -> str | None:
        """The tenant of an ``Authorization: Bearer …`` header, or None."""
        scheme, _, api_key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not api_key.strip():
            return None
        given = hash_key(api_key.strip())
        found = None
        # Every entry is compared, in constant time: how long a wrong key takes says nothing about right ones.
        for known, tenant in self.tenants.items():
            if hmac.compare_digest(known, given):
                found = tenant
        return found
