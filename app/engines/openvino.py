"""OpenVINO on a CPU. Never imports torch: a loaded EfficientNet-Lite0 needs 150 MB in all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import openvino

from app.engines import EngineError, Pixels, Probabilities, check_finite, check_pixels, run_self_test
from models.heads import probabilities
from models.manifest import Manifest


class OpenVinoEngine:
    """Every image of a batch is an inference of its own, ``threads`` of them at a time, one core each.

    On a CPU a batch buys nothing: a static batch of one was measured as fast per image as the best of 2…32,
    with no shape to compile or allocate for at the first batch of each size, in less than half the memory
    of a batch of 32 (its activations stay in the cache). So a row never depends on its neighbours.
    """

    def __init__(
        self,
        manifest: Manifest,
        artefacts: Path,
        *,
        threads: int,
        precision: Literal["f32", "bf16"] | None = None,
    ) -> None:
        """Load and self-test.

        Without ``precision`` OpenVINO takes bf16 where the CPU computes in it (AMX, AVX512_BF16), else f32.
        """
        self.name, self.version, self.input_size = manifest.name, manifest.version, manifest.input.size
        self._manifest = manifest
        options: dict[str, object] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # A pinned stream could not leave a core to which another replica pinned one of its own.
            "ENABLE_CPU_PINNING": False,
            # Ray counts logical cores; without this, one thread per physical core is the most we would get.
            "ENABLE_HYPER_THREADING": True,
        }
        if precision is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        try:
            compiled = openvino.Core().compile_model(artefacts / "model.xml", "CPU", options)
            # Not AsyncInferQueue: its Python callback is released on a thread that the destructor waits for
            # while holding the GIL, and once in a while neither ever gets on.
            self._requests = [compiled.create_infer_request() for _ in range(threads)]
        except RuntimeError as error:
            raise EngineError(f"{self.name}: OpenVINO cannot load the model: {error}") from error
        run_self_test(self, artefacts)

    def predict(self, pixels: Pixels) -> Probabilities:
        """See ``Engine.predict``."""
        check_pixels(pixels, self.input_size)
        logits = np.empty((len(pixels), self._manifest.logits), np.float32)
        try:
            for start in range(0, len(pixels), len(self._requests)):
                # The last group may be smaller; zip ends with it.
                for request, photo in zip(self._requests, pixels[start:], strict=False):
                    request.start_async({0: photo[None]})
                for request, row in zip(self._requests, logits[start:], strict=False):
                    request.wait()
                    row[:] = request.get_output_tensor(0).data[0]
        except RuntimeError as error:
            raise EngineError(f"{self.name}: inference failed: {error}") from error
        check_finite(logits, self.name)
        return probabilities(logits, self._manifest.heads)

    def warm_up(self, max_batch: int) -> None:
        """Nothing to do: the self-test ran the only shape there is."""
