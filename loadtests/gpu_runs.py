"""The torch engine at work, measured: by batch, decoding on its device, and fed by CPU decoders."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from app.engines.cuda import CudaEngine
from models import selftest
from models.build import weights_path
from models.heads import probabilities
from models.manifest import Manifest
from models.network import load_network

_QUALITY, _GRAIN, _ASPECT = 88, 5.0, 4 / 3  # as loadtests.photos has them


@dataclass(frozen=True)
class Row:
    """One way to run the engine at one batch size; ``calls`` at a time."""

    mode: str
    batch: int
    calls: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    ceiling: float


@dataclass(frozen=True)
class Decoding:
    """Decoding ``megapixels`` photos: photos/s by the decoder alone, and with the network behind it."""

    megapixels: float
    batch: int
    decoded_per_s: float
    scored_per_s: float
    kept: bool


@dataclass(frozen=True)
class Fed:
    """The whole path with a number of CPU decoders."""

    megapixels: float
    decoders: int
    images_per_s: float
    mean_batch: float


def artefacts(manifest: Manifest, built: Path, scratch: Path) -> Path:
    """What was built of a model, or as much of it as torch needs, made here without OpenVINO."""
    if (built / manifest.folder / "build.json").is_file():
        return built / manifest.folder
    network = load_network(manifest, weights_path(manifest))
    save_file(network.backbone.state_dict(), scratch / "weights.safetensors")
    with torch.inference_mode():
        logits = np.asarray(network(torch.from_numpy(selftest.pixels(manifest.input.size))))
    record = {"self_test": selftest.expectation(probabilities(logits, manifest.heads))}
    (scratch / "build.json").write_text(json.dumps(record))
    return scratch


@dataclass(frozen=True)
class Ran:
    """What a number of calls came to: images, seconds of all together, and of each, sorted."""

    images: int
    wall_s: float
    calls_s: tuple[float, ...]

    @property
    def images_per_s(self) -> float:
        """The throughput."""
        return self.images / self.wall_s


def run(work: Callable[[], int], threads: int, seconds: float) -> Ran:
    """``threads`` threads that do ``work``, which returns a number of images, over and over.

    Each does it once before the clock starts: libraries keep handles and plans per thread. Raises what one
    of them raised, once all have ended.
    """
    calls_s: list[float] = []
    images = 0
    failures: list[BaseException] = []
    counting = threading.Lock()
    start = 0.0

    def begin() -> None:
        nonlocal start
        start = time.perf_counter()

    ready = threading.Barrier(threads, action=begin)

    def loop() -> None:
        nonlocal images
        try:
            work()
            ready.wait()
            while not failures and time.perf_counter() - start < seconds:
                begun = time.perf_counter()
                done = work()
                with counting:
                    calls_s.append(time.perf_counter() - begun)
                    images += done
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failures.append(error)
            ready.abort()

    started = [threading.Thread(target=loop) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]
    return Ran(images, time.perf_counter() - start, tuple(sorted(calls_s)))


def engine_rows(
    engine: CudaEngine, mode: str, batches: Sequence[int], limit: Callable[[int], float], seconds: float
) -> Iterator[Row]:
    """The engine at each batch size, one call at a time and as many as overlap."""
    rng = np.random.default_rng(0)
    for batch in batches:
        pixels = rng.integers(0, 256, (batch, engine.input_size, engine.input_size, 3), np.uint8)
        for calls in dict.fromkeys((1, engine.concurrency)):

            def predict(pixels: Any = pixels) -> int:
                return len(engine.predict(pixels))

            predict()
            ran = run(predict, calls, seconds)
            p50, p99 = (float(value) for value in np.percentile(ran.calls_s, (50, 99)) * 1000)
            yield Row(mode, batch, calls, ran.images_per_s, p50, p99, limit(batch))


def photo(megapixels: float) -> bytes:
    """A JPEG of loadtests.photos or, without scikit-image, one drawn here with as much detail to decode."""
    try:
        from loadtests.photos import make_photo  # noqa: PLC0415
    except ModuleNotFoundError:
        return drawn(megapixels)
    return make_photo(megapixels).unique()


def drawn(megapixels: float) -> bytes:
    """Soft coloured blots and grain, 4:3."""
    width = max(16, round((megapixels * 1e6 * _ASPECT) ** 0.5))
    height = max(16, round(width / _ASPECT))
    rng = np.random.default_rng(0)
    blots = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    soft = np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * _GRAIN
    file = io.BytesIO()
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def decoding_rows(
    engine: CudaEngine, manifest: Manifest, megapixels: Sequence[float], batch: int, seconds: float
) -> Iterator[Decoding]:
    """Decoding on the engine's device, header checks included: alone, then with the network behind it."""
    from app.engines.inputs import input_spec  # noqa: PLC0415
    from app.engines.nvjpeg import JpegDecoder  # noqa: PLC0415
    from app.imaging.bare import BareJpeg, bare_jpeg  # noqa: PLC0415
    from app.imaging.guards import ImageLimits, inspect  # noqa: PLC0415

    decoder = JpegDecoder([input_spec(manifest)], device=engine.device)
    limits = ImageLimits()
    for size in megapixels:
        data = photo(size)

        def checked(data: bytes = data) -> list[BareJpeg]:
            return [bare for _ in range(batch) if (bare := bare_jpeg(data, inspect(data, limits)))]

        def decode() -> int:
            return len(decoder.decode(checked()).kept)

        def score() -> int:
            return len(engine.predict_device(decoder.decode(checked()).pixels[0]))

        kept = decode() == batch
        alone, behind = run(decode, 1, seconds), run(score, engine.concurrency, seconds)
        yield Decoding(size, batch, alone.images_per_s, behind.images_per_s, kept)


def fed_rows(
    engine: CudaEngine,
    manifest: Manifest,
    megapixels: Sequence[float],
    decoders: Sequence[int],
    batch: int,
    seconds: float,
) -> Iterator[Fed]:
    """N processes decode, the engine takes whatever is ready, at most ``batch`` at a time."""
    from app.engines.inputs import input_spec  # noqa: PLC0415
    from loadtests.decoders import Decoders  # noqa: PLC0415

    spec = input_spec(manifest)
    for size in megapixels:
        data = photo(size)
        for count in decoders:
            with Decoders(data, spec, count, slots=batch * (engine.concurrency + 1)) as source:

                def score(source: Decoders = source) -> int:
                    slots = source.take(batch)
                    engine.predict(source.pixels(slots))
                    source.give_back(slots)
                    return len(slots)

                score()
                # Until every process is at work and the ring's first filling is used up.
                run(score, engine.concurrency, max(1.0, seconds / 2))
                ran = run(score, engine.concurrency, seconds)
            yield Fed(size, count, ran.images_per_s, ran.images / len(ran.calls_s))
