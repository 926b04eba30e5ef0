"""Everything that can be set, in one frozen, typed place. Nothing else reads the environment.

A value comes from, in this order: an argument of ``build`` (``serve run app.main:build budget_ms=800``, or
``args`` in serve_config.yaml), the environment (``FOODDX_BUDGET_MS=800``), the default here. An unknown
argument, an unknown ``FOODDX_…`` variable or a value out of range stops the start, and says which and why.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.stores.connection import check_url

PREFIX = "FOODDX_"

# Read by `fooddx score` on the client's side, so known here though no field of the service.
CLIENT_VARIABLES = frozenset({"FOODDX_URL"})


class SettingsError(ValueError):
    """The settings cannot be used; the text says which one and why, one per line."""


class Settings(BaseSettings):
    """The service's settings. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    data_dir: Path = Field(
        default=Path("data"), description="Folder for photos, the embedded store, keys and built models"
    )
    store: str = Field(
        default="",
        description="Where photos are kept: a folder, or `s3://bucket/prefix`; empty: `images` in the data "
        "folder",
    )
    photo_key: str = Field(
        default="", description="KMS key that S3 encrypts photos with; empty: a key of S3's own"
    )
    credential_key: str = Field(
        default="",
        description="KMS key that seals tenants' credentials; empty: a key file in the data folder",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey: `redis://`, `rediss://`, `unix://`, Sentinel or cluster, see "
        "docs/keys.md; empty: the embedded store",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="The API key clients must send; empty: one made at first start, in the data folder",
    )

    queue: str = Field(
        default="", description="URL of the SQS queue that photos come by; empty: no queue intake"
    )
    dead_letter_queue: str = Field(
        default="", description="URL of the SQS queue for what the intake gives up; needed with `queue`"
    )
    notice_queue: str = Field(
        default="", description="URL of an SQS queue that is told of the intake's results; empty: none"
    )
    intake_max_in_flight: int = Field(
        default=8, ge=1, le=64, description="Photos one intake replica works on when nobody else is waiting"
    )
    intake_tries: int = Field(
        default=4,
        ge=1,
        le=100,
        description="How often a message is tried; the queue's own `maxReceiveCount` must be higher",
    )
    intake_replicas: int = Field(default=1, ge=1, description="Replicas of the queue intake")

    host: str = Field(default="127.0.0.1", description="Address that `fooddx serve` listens on")
    port: int = Field(default=8000, ge=1, le=65535, description="Port that `fooddx serve` listens on")
    metrics_port: int = Field(
        default=9464, ge=1, le=65535, description="Port of the Prometheus metrics of `fooddx serve`"
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`cuda`: torch on a GPU; `cpu`: OpenVINO; `auto`: a GPU where Ray has one"
    )
    precision: Literal["auto", "f32", "bf16", "int8"] = Field(
        default="auto",
        description="How a CPU computes: `auto` is int8 where it multiplies bytes and the model has that, "
        "else what it does best",
    )
    decode: Literal["cpu", "gpu"] = Field(
        default="cpu",
        description="Where plain JPEGs are decoded: `gpu`: by the scorer, where CPUs would be the limit",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Models to run over every photo, comma-separated; empty: the promoted one, "
        "else `meals-lite2`",
    )
    scorer_threads: int = Field(default=1, ge=1, le=64, description="CPU threads of one scorer replica")
    ingress_replicas: int = Field(default=1, ge=1, description="Replicas of the HTTP ingress")
    preprocessor_replicas: int = Field(default=1, ge=1, description="Replicas of the preprocessor")
    scorer_replicas: int = Field(default=1, ge=1, description="Replicas of the scorer")

    budget_ms: int = Field(
        default=1000, ge=50, le=60_000, description="Time a photo may take once its bytes are here"
    )
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, le=64 * 2**20, description="Largest photo")
    max_pixels: int = Field(
        default=50_000_000,
        ge=10_000,
        description="Most pixels a JPEG may have; other formats at most 16 million",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="Longest time a client may take to send a photo"
    )
    max_in_flight: int = Field(
        default=64, ge=1, le=4096, description="Photos one ingress replica works on; more are answered 429"
    )

    batch_size: int = Field(default=16, ge=1, le=256, description="Most photos the scorer runs at once")
    batch_wait_ms: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="How long the scorer waits for a batch to fill; 0: as long as the batch before takes",
    )

    dedupe_days: float = Field(
        default=30.0, gt=0, description="How long the probabilities of a photo are kept for reuse"
    )
    idempotency_hours: float = Field(
        default=24.0, gt=0, description="How long an Idempotency-Key is remembered"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least level that is logged"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or not all(value):
            raise ValueError("name each model once, and none between two commas")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        check_url(value.get_secret_value())
        return value

    @field_validator("api_key")
    @classmethod
    def _strong_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if len(value.get_secret_value()) < 24:
            raise ValueError("an API key needs at least 24 characters; leave it out to have one made")
        return value

    @field_validator("store")
    @classmethod
    def _folder_or_bucket(cls, value: str) -> str:
        if value.startswith("s3://"):
            from app.stores.s3 import Bucket  # noqa: PLC0415 - loads what a folder spares

            Bucket.at(value)
        elif "://" in value:
            raise ValueError("must be a folder or s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("queue", "dead_letter_queue", "notice_queue")
    @classmethod
    def _queue_url(cls, value: str) -> str:
        if value:
            from app.stores.queue import check_queue_url  # noqa: PLC0415 - as above

            check_queue_url(value)
        return value

    @model_validator(mode="after")
    def _intake_is_whole(self) -> Self:
        if self.queue and not self.dead_letter_queue:
            raise ValueError("queue needs a dead_letter_queue: photos that cannot be scored end there")
        if self.queue and not self.on_s3:
            raise ValueError("queue needs a store of s3://bucket: what comes by a queue lies in a bucket")
        return self

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        # Replicas run in another working directory than the one the person typed in.
        object.__setattr__(self, "data_dir", self.data_dir.expanduser().absolute())
        if not self.on_s3:
            folder = Path(self.store or self.data_dir / "images").expanduser().absolute()
            object.__setattr__(self, "store", str(folder))
        return self

    @property
    def on_s3(self) -> bool:
        """Whether photos are in a bucket."""
        return self.store.startswith("s3://")

    def make_data_dir(self) -> Path:
        """The data folder, made closed to other users if it is not there."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.data_dir

    def without_secrets(self) -> Self:
        """A copy that may travel to replicas and appear in a log."""
        return self.model_copy(update={"api_key": None, "redis_url": None})

    @property
    def models_dir(self) -> Path:
        """Where built models are."""
        return self.data_dir / "models"

    @property
    def registry_dir(self) -> Path:
        """Where registered models are, and which of them serves; see models/registry.py."""
        return self.data_dir / "registry"

    @property
    def budget_s(self) -> float:
        """The time budget of a photo in seconds."""
        return self.budget_ms / 1000


def load_settings(**arguments: Any) -> Settings:
    """Settings from ``arguments``, the environment and the defaults.

    Raises:
        SettingsError: naming every value that cannot be used.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(
            f"unknown environment variable {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    try:
        return Settings(**arguments)
    except ValidationError as error:
        # The input is left out on purpose: it may be a secret.
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(lines)) from None
