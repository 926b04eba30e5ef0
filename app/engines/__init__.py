"""What runs a network: one Protocol, OpenVINO on a CPU, torch on CUDA.

An engine takes prepared pixels and gives probabilities. It knows nothing of foods, requests or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models import selftest
from models.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from app.engines.nvjpeg import JpegDecoder
    from app.imaging.inputs import InputSpec

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Probabilities = NDArray[np.float32]
Device = Literal["cpu", "cuda"]
Precision = Literal["auto", "f32", "bf16", "int8"]
Decode = Literal["cpu", "gpu"]


class EngineError(RuntimeError):
    """The engine is broken and will not mend: let the replica crash, so that a fresh one takes over."""


class Engine(Protocol):
    """One loaded model.

    Attributes:
        name, version: of the model.
        input_size: the side of the square it looks at, in pixels.
        concurrency: from how many threads at a time ``predict`` may be called.
    """

    name: str
    version: str
    input_size: int
    concurrency: int

    def predict(self, pixels: Pixels) -> Probabilities:
        """Probabilities, float32 (N, ``manifest.outputs``), of photos, uint8 (N, input_size, input_size, 3).

        N may be anything from 0 up. Rows do not depend on each other. Gives up the GIL while computing.
        Raises ValueError for another shape or dtype, EngineError when the device fails or its answer holds
        anything but finite numbers.
        """
        ...

    def warm_up(self, max_batch: int) -> None:
        """Pay now what the first batches up to ``max_batch`` would have to pay."""
        ...


class DeviceEngine(Engine, Protocol):
    """An engine that also takes photos which are on its device already."""

    def predict_device(self, pixels: torch.Tensor) -> Probabilities:
        """As ``predict``, of a tensor uint8 (N, input_size, input_size, 3)."""
        ...


def create_decoder(specs: Sequence[InputSpec]) -> JpegDecoder:
    """What decodes JPEGs on the GPU for the given inputs. Raises EngineError without a GPU."""
    from app.engines.nvjpeg import JpegDecoder  # noqa: PLC0415

    return JpegDecoder(specs)


def create_engine(
    device: Device, manifest: Manifest, artefacts: Path, threads: int, precision: Precision = "auto"
) -> Engine:
    """An engine for ``manifest``, self-tested, from what ``models.build.build`` made in ``artefacts``.

    ``threads`` and ``precision`` are the OpenVINO engine's, see there; CUDA takes no notice of them. Raises
    EngineError when artefacts are missing or broken, or the device is not there.
    """
    # Imported here, since torch costs a CPU replica 700 MB that it never uses.
    if device == "cuda":
        from app.engines.cuda import CudaEngine  # noqa: PLC0415

        return CudaEngine(manifest, artefacts)
    from app.engines.openvino import OpenVinoEngine  # noqa: PLC0415

    return OpenVinoEngine(manifest, artefacts, threads=threads, precision=precision)


def check_pixels(pixels: Pixels, size: int) -> None:
    """Raise ValueError unless ``pixels`` is uint8 (N, size, size, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (N, {size}, {size}, 3)")


def check_finite(logits: Logits, name: str) -> None:
    """Raise EngineError if the network of the engine ``name`` answered with an infinity or no number."""
    if not np.isfinite(logits).all():
        raise EngineError(f"{name}: the network answers with numbers that are not finite")


def run_self_test(engine: Engine, artefacts: Path) -> None:
    """Raise EngineError unless ``engine`` answers ``models.selftest`` as the build did."""
    try:
        expected = json.loads((artefacts / "build.json").read_text("utf-8"))["self_test"]
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{engine.name}: nothing usable was built: {error!r}") from error
    difference = selftest.disagreement(engine.predict(selftest.pixels(engine.input_size)), expected)
    if not difference <= selftest.TOLERANCE:
        raise EngineError(
            f"{engine.name}: self-test is off by {difference:.3f} (at most {selftest.TOLERANCE})"
        )
