"""API keys: made at first start, kept as a hash by everything that serves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from app.settings import Settings


def hash_key(api_key: str) -> str:
    """SHA-256 of a key, hex. Keys are 192 random bits, so a slow hash would protect nothing more."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def new_api_key() -> str:
    """A key that nobody can guess: 192 random bits."""
    return f"fdx_{secrets.token_urlsafe(24)}"


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
            file.write(f"{new_api_key()}\n")
            file.flush()
            # A link appears with its content or, where another process was first, not at all.
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text().strip()
