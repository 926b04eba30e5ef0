"""The Scorer: batches of pixels in, probabilities out, on CUDA with torch or on a CPU with OpenVINO."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from app.autoscaling import PHOTOS
from app.deployments import settle
from app.engines import (
    Decode,
    Device,
    DeviceEngine,
    Engine,
    EngineError,
    Precision,
    create_decoder,
    create_engine,
)
from app.engines.inputs import input_spec, input_specs
from app.errors import DeadlineExceeded, FoodDXError, ScorerUnavailable
from app.messages import Inference, PixelsJob, Rejected, ScorerOutcome, Undecoded, expired
from app.telemetry import RayMeter, log_soon, logger
from models.build import BuildError, build_apart, is_built
from models.manifest import ManifestError, load_manifest

_Seen = tuple[tuple[NDArray[np.float32], ...], str | None]
"""Of one photo: a row of probabilities per model, and its perceptual hash if it was decoded here."""

# Sets of models: those that serve, those before, and tenants' own. A small one takes about 60 MB.
_SETS_KEPT = 8


@dataclass(frozen=True, slots=True)
class ModelHome:
    """Where a scorer finds its models and how it runs them.

    Attributes:
        registry: folder of the registered models, see models/registry.py.
        built: folder of what was built of models.
        device: "cuda" for torch on a GPU, "cpu" for OpenVINO.
        threads: CPU threads of one scorer.
        precision: of OpenVINO.
        decode: "gpu" to decode JPEGs too.
    """

    registry: Path
    built: Path
    device: Device
    threads: int
    precision: Precision = "auto"
    decode: Decode = "cpu"


class ScorerConfig(BaseModel):
    """What ``user_config`` may change while the scorer runs; no models: those it began with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1, le=256)
    batch_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    models: tuple[str, ...] = ()


class _Loaded:
    """Models that look at the same photos, ready to run."""

    def __init__(self, refs: tuple[str, ...], home: ModelHome, max_batch: int) -> None:
        start = time.perf_counter()
        manifests = [load_manifest(ref, home.registry) for ref in refs]
        if not all(is_built(manifest, home.built) for manifest in manifests):
            # A node's set-up should have: it takes a replica's start from two seconds to many.
            logger.warning("building models at replica start", extra={"models": list(refs)})
            build_apart(manifests, home.built)
        self.engines: list[Engine] = [
            create_engine(home.device, manifest, home.built / manifest.folder, home.threads, home.precision)
            for manifest in manifests
        ]
        self.specs = input_specs(manifests)
        self.decoder = create_decoder(self.specs) if home.decode == "gpu" else None
        self.spec_of = [self.specs.index(input_spec(manifest)) for manifest in manifests]
        for engine in self.engines:
            engine.warm_up(max_batch)
        logger.info(
            "models loaded", extra={"models": list(refs), "load_s": round(time.perf_counter() - start, 2)}
        )

    def fits(self, job: PixelsJob) -> bool:
        if job.encoded:
            return self.decoder is not None
        return [p.shape for p in job.pixels] == [(spec.size, spec.size, 3) for spec in self.specs]

    def see(self, jobs: Sequence[PixelsJob]) -> Iterator[tuple[PixelsJob, _Seen]]:
        """What the models say of each photo, but for those that could not be decoded."""
        if decoded := [job for job in jobs if not job.encoded]:
            stacked = [np.stack([job.pixels[i] for job in decoded]) for i in range(len(self.specs))]
            outputs = [
                engine.predict(stacked[i]) for engine, i in zip(self.engines, self.spec_of, strict=True)
            ]
            for job, *rows in zip(decoded, *outputs, strict=True):
                yield job, (tuple(rows), None)
        if self.decoder and (encoded := [(job, job.encoded) for job in jobs if job.encoded]):
            there = self.decoder.decode([jpeg for _, jpeg in encoded])
            outputs = [
                cast(DeviceEngine, engine).predict_device(there.pixels[i])  # as all beside a decoder are
                for engine, i in zip(self.engines, self.spec_of, strict=True)
            ]
            for place, pdq, *rows in zip(there.kept, there.pdq, *outputs, strict=True):
                yield encoded[place][0], (tuple(rows), pdq)


def _photos(groups: Sequence[Sequence[PixelsJob]]) -> int:
    """How many photos are in groups of them."""
    return sum(map(len, groups))


class Scorer:
    """Runs the models that a photo's job names over each batch.

    Attributes are private; what matters: a photo that cannot be run fails alone, as a Rejected among its
    batch's results. An engine that fails marks the replica as broken: ``check_health`` then tells Ray, which
    replaces it. Models are taken up beside those in use, and the ones before stay loaded: photos that were
    under way still find them, and so does whoever goes back.
    """

    def __init__(self, models: tuple[str, ...], home: ModelHome, max_batch: int) -> None:
        self._home = home
        self._max_batch = self._batch_size = max_batch
        self._own = models
        self._loaded = {models: _Loaded(models, home, max_batch)}
        self._loading = asyncio.Lock()
        # As many batches at a time as the engines take, and the loop stays free to take in the next.
        self._concurrency = min(engine.concurrency for engine in self._loaded[models].engines)
        self._threads = ThreadPoolExecutor(self._concurrency, "infer")
        self._in_work = 0
        self._free = asyncio.Event()
        self._free.set()
        # The sizes stand until `reconfigure`, which Serve calls before the first request.
        self._batched = serve.batch(
            max_batch_size=max_batch,
            batch_wait_timeout_s=0.0,
            max_concurrent_batches=self._concurrency,
            batch_size_fn=_photos,
        )(self._batch)
        self._broken: str | None = None
        self._waiting = 0
        self._meter = RayMeter()
        settle(computing=True)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take a new batch size and wait, and load new models; the next batch uses them, nothing restarts.

        Models that cannot be loaded are logged and leave those before in use: Ray would take an exception for
        a broken replica and, after a few, end the application. Photos that name them are told to come again.
        """
        wanted = ScorerConfig.model_validate(config)
        self._batch_size = wanted.batch_size
        self._batched.set_max_batch_size(wanted.batch_size)
        self._batched.set_batch_wait_timeout_s(wanted.batch_wait_ms / 1000)
        await self._try_to_load(wanted.models or self._own)

    async def _try_to_load(self, models: tuple[str, ...]) -> bool:
        try:
            await self._load(models)
        except (ManifestError, BuildError, EngineError):
            logger.exception("models cannot be loaded", extra={"models": list(models)})
            return False
        return True

    async def _load(self, models: tuple[str, ...]) -> None:
        """Have ``models`` loaded, and of the others those used last."""
        async with self._loading:
            loaded = self._loaded.pop(models, None)  # put back as the youngest
            if loaded is None:
                loaded = await asyncio.to_thread(_Loaded, models, self._home, self._max_batch)
            while len(self._loaded) >= _SETS_KEPT:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[models] = loaded

    def check_health(self) -> None:
        """Raise when an engine is broken: Ray then starts another replica."""
        if self._broken:
            raise EngineError(self._broken)

    def ready(self) -> bool:
        """Whether this replica could score now: its models are loaded, or it would not exist."""
        return self._broken is None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve; see app/autoscaling.py."""
        return {PHOTOS: self._waiting}

    async def run(self, jobs: list[PixelsJob]) -> list[ScorerOutcome]:
        """Score photos, together with whoever else is waiting."""
        self._count(len(jobs))
        try:
            for models, deadline in {job.models: job.deadline for job in jobs}.items():
                # Where not, the ingress has heard of them first.
                if models not in self._loaded and not expired(deadline):
                    await self._try_to_load(models)
                if models in self._loaded:
                    self._loaded[models] = self._loaded.pop(models)  # the youngest: what is used stays
            # Left alone, @serve.batch closes batches on its timer while one is still in work, and they come
            # out small. Whoever comes meanwhile waits here instead, and all of them make the next batch.
            await self._free.wait()
            # @serve.batch refuses what is larger than a batch.
            whole = [jobs[at : at + self._batch_size] for at in range(0, len(jobs), self._batch_size)]
            return [outcome for part in await asyncio.gather(*map(self._batched, whole)) for outcome in part]
        finally:
            self._count(-len(jobs))

    def _count(self, change: int) -> None:
        self._waiting += change
        self._meter.add("fooddx_scorer_queue", self._waiting)

    async def _batch(self, groups: list[list[PixelsJob]]) -> list[list[ScorerOutcome]]:
        jobs = [job for group in groups for job in group]
        started = time.time()
        live = [job for job in jobs if not expired(job.deadline) and self._fits(job)]
        self._in_work += 1
        if self._in_work >= self._concurrency:
            self._free.clear()
        try:
            outcomes = await self._infer(live, started) if live else {}
        finally:
            self._in_work -= 1
            self._free.set()
        self._meter.add("fooddx_batch_size", len(live))
        return [[outcomes.get(id(job)) or self._reject(job) for job in group] for group in groups]

    async def _infer(self, jobs: list[PixelsJob], started: float) -> dict[int, Inference]:
        loop = asyncio.get_running_loop()
        groups: dict[tuple[str, ...], list[PixelsJob]] = {}
        for job in jobs:
            groups.setdefault(job.models, []).append(job)
        sets = [(self._loaded[models], group) for models, group in groups.items()]
        try:
            found = await loop.run_in_executor(self._threads, _see, sets)
        except EngineError as error:
            # The device or the model failed, not a photo: no later batch can be trusted.
            self._broken = str(error)
            logger.exception("engine failed")
            raise
        score_s = time.time() - started
        request_ids = [job.request_id for job in jobs]
        log_soon("batch", request_ids=request_ids, size=len(jobs), ms=round(score_s * 1000, 1))
        return {
            id(job): Inference(rows, max(started - job.sent, 0.0), score_s, pdq) for job, (rows, pdq) in found
        }

    def _fits(self, job: PixelsJob) -> bool:
        loaded = self._loaded.get(job.models)
        return loaded is not None and loaded.fits(job)

    def _reject(self, job: PixelsJob) -> Rejected | Undecoded:
        if expired(job.deadline):
            self._meter.add("fooddx_expired_total", stage="score")
            return Rejected.of(DeadlineExceeded())
        if job.encoded:
            return Undecoded()
        if job.models not in self._loaded:
            return Rejected.of(ScorerUnavailable("The model is not here yet."))
        logger.error("pixels do not fit the models", extra={"request_id": job.request_id})
        return Rejected.of(FoodDXError())


def _see(sets: Sequence[tuple[_Loaded, Sequence[PixelsJob]]]) -> list[tuple[PixelsJob, _Seen]]:
    """What the models say of each photo. As a rule there is one set: the models that serve."""
    return [seen for loaded, jobs in sets for seen in loaded.see(jobs)]
