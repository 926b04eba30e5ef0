"""What every peer does with a photo, and what run.py tells a peer: imports no server, and no torch.

Two levels. ``compute``: bytes in, decode, model, the likeliest classes as JSON out. ``full``: all that
``POST /v1/scores`` does, by the product's own functions over the same stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from app.engines.inputs import input_specs
from app.engines.openvino import OpenVinoEngine
from app.errors import FoodDXError, Unauthenticated
from app.imaging.guards import ImageLimits
from app.imaging.prepare import Prepared, prepare
from app.judge import TableJudge
from app.messages import Inference, PhotoJob, Rejected, Scored
from app.pipeline import Photo, Pipeline, Score
from app.schemas import Profile
from app.settings import Settings, load_settings
from app.stores.images import FolderImages
from app.stores.results import ResultStore
from app.telemetry import Stages
from app.tenants.tenants import DEFAULT_TENANT, Directory, Tenant
from models.manifest import load_manifest
from models.registry import DEFAULT

Level = Literal["compute", "full"]
Options = Mapping[str, int]
"""What a peer is tuned by: numbers of processes, batch sizes …; each peer has its own."""
Best = Mapping[Level, Options]
"""The options that were found best."""
Tried = Mapping[Level, Sequence[Options]]
"""Those they were found among."""

WORKERS_BY_THREADS: Final[Tried] = {
    "compute": [
        {"workers": 1, "threads": 2},
        {"workers": 2, "threads": 1},
        {"workers": 2, "threads": 2},
        {"workers": 3, "threads": 1},
    ],
    "full": [
        {"workers": 1, "threads": 2},
        {"workers": 2, "threads": 1},
        {"workers": 2, "threads": 2},
        {"workers": 3, "threads": 1},
        {"workers": 4, "threads": 1},
    ],
}
"""Threads compute: connections stay with the worker that took them, so one may have most of the work."""

ROUTE: Final = "/v1/scores"
TOP: Final = 5
BUDGET_S: Final = 10.0
"""Time for a photo: a slow peer answers late, and is measured, where FoodDX would give up after a second."""
LEVEL_VARIABLE: Final = "PEERS_LEVEL"
OPTIONS_VARIABLE: Final = "PEERS_OPTIONS"
_PLACE_OF_DIGITS: Final = 6


@dataclass(frozen=True)
class Task:
    """What run.py asks of a peer.

    Attributes:
        level: which of the two jobs.
        options: of the peer.
        settings: the product's, for folders, the address and the API key.
    """

    level: Level
    options: Options
    settings: Settings


def task(best: Best) -> Task:
    """Read the task from the environment; ``best`` are the options where it names none.

    Raises:
        KeyError: an unknown level.
        SettingsError: see app/settings.py.
    """
    level: Level = os.environ.get(LEVEL_VARIABLE, "full")  # type: ignore[assignment]
    given: dict[str, int] = json.loads(os.environ.get(OPTIONS_VARIABLE, "{}"))
    return Task(level, {**best[level], **given}, load_settings())


class Scorer:
    """The default model on one thread. One call at a time."""

    def __init__(self, settings: Settings) -> None:
        self.model = (settings.models or (DEFAULT,))[0]
        manifest = load_manifest(self.model, settings.registry_dir)
        self._engine = OpenVinoEngine(manifest, settings.models_dir / manifest.folder, threads=1)
        self._specs = input_specs([manifest])
        self._limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
        self._classes = manifest.columns("classes")

    def prepare(self, data: bytes) -> Prepared:
        """Decode; ``pixels[0]`` is uint8 (size, size, 3). Raises as app.imaging.prepare."""
        return prepare(data, self._limits, self._specs)

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 (outputs,), of pixels, uint8 (size, size, 3)."""
        probabilities: NDArray[np.float32] = self._engine.predict(pixels[None])[0]
        return probabilities

    def top(self, probabilities: NDArray[np.float32]) -> bytes:
        """The likeliest classes by index, as JSON."""
        classes = probabilities[self._classes]
        best = np.argsort(classes)[: -TOP - 1 : -1]
        found = [{"class": int(i), "probability": round(float(classes[i]), _PLACE_OF_DIGITS)} for i in best]
        return json.dumps({"top": found}).encode()

    def answer(self, data: bytes) -> bytes:
        """The whole job of level ``compute``."""
        return self.top(self.infer(self.prepare(data).pixels[0]))

    def score(self, job: PhotoJob) -> Scored | Rejected:
        """Decode and inference as the pipeline wants to have them."""
        start = time.perf_counter()
        try:
            prepared = self.prepare(job.data)
        except FoodDXError as error:
            return Rejected.of(error)
        decoded = time.perf_counter()
        probabilities = self.infer(prepared.pixels[0])
        inference = Inference((probabilities,), 0.0, time.perf_counter() - decoded)
        info = prepared.info
        return Scored(inference, info.media_type, info.width, info.height, prepared.pdq, decoded - start)


class Scorers:
    """A Scorer for each of ``threads`` that call at once; one more waits."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self._free: SimpleQueue[Scorer] = SimpleQueue()
        for _ in range(threads):
            self._free.put(Scorer(settings))

    def answer(self, data: bytes) -> bytes:
        """See Scorer."""
        with self._one() as scorer:
            return scorer.answer(data)

    def score(self, job: PhotoJob) -> Scored | Rejected:
        """See Scorer."""
        with self._one() as scorer:
            return scorer.score(job)

    @contextlib.contextmanager
    def _one(self) -> Iterator[Scorer]:
        scorer = self._free.get()
        try:
            yield scorer
        finally:
            self._free.put(scorer)


class Unmetered:
    """A meter that nobody reads: each server brings metrics of its own."""

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """See app.telemetry.Meter."""


class Keys:
    """Who may call."""

    def __init__(self, settings: Settings) -> None:
        self._directory = Directory([Tenant.first(_secret(settings.api_key))])

    def check(self, authorization: str | None) -> None:
        """Raise Unauthenticated unless the header has the API key."""
        if self._directory.owner(authorization, datetime.now(UTC)) is None:
            raise Unauthenticated


class FullJob:
    """All of ``POST /v1/scores``: what is behind it, without the HTTP."""

    def __init__(self, settings: Settings, score: Score) -> None:
        """Open the stores.

        Args:
            settings: with ``redis_url`` and ``api_key``.
            score: the peer's own way to ``Scorer.score``.
        """
        model = (settings.models or (DEFAULT,))[0]
        judge = TableJudge([model], registry=settings.registry_dir)
        images = FolderImages(Path(settings.store))

        async def images_of(_: str) -> FolderImages:
            return images

        async def judge_of(_: str) -> TableJudge:
            return judge

        self._results = ResultStore(
            _secret(settings.redis_url),
            dedupe_ms=round(settings.dedupe_days * 86_400_000),
            idempotency_ms=round(settings.idempotency_hours * 3_600_000),
            claim_ms=round((BUDGET_S + 1) * 1000),
        )
        self._pipeline = Pipeline(
            images=images_of,
            results=self._results,
            score=score,
            judge=judge_of,
            budget_s=BUDGET_S,
            meter=Unmetered(),
        )

    async def run(self, data: bytes) -> bytes:
        """A photo in, the Result as JSON out: the photo is stored and the result is written.

        Raises:
            FoodDXError: one of the tree.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        return await self._pipeline.run(Photo(data, sha256, DEFAULT_TENANT, Profile()), Stages())

    async def close(self) -> None:
        """Let go of the stores."""
        await self._pipeline.drained()
        await self._results.close()


def _secret(value: SecretStr | None) -> str:
    return value.get_secret_value() if value else ""
