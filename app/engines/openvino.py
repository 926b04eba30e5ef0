"""OpenVINO on a CPU. Never imports torch: a loaded EfficientNet-Lite2 needs 120 to 180 MB in all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Collection
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino

from app.engines import (
    EngineError,
    Pixels,
    Precision,
    Probabilities,
    check_finite,
    check_pixels,
    run_self_test,
)
from models.heads import probabilities
from models.manifest import Manifest

_INTEGER_UNITS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""CPU flags of instructions that multiply bytes; without any, int8 was never measured to be faster."""


class OpenVinoEngine:
    """Every image of a batch is an inference of its own, ``threads`` of them at a time, one core each.

    On a CPU a batch buys next to nothing: a static batch of one was measured within 6 % per image of the best
    of 2…16, with no shape to compile or allocate for at the first batch of each size, in a fraction of the
    memory (its activations stay in the cache). So a row never depends on its neighbours.

    Attributes:
        precision: what it computes in.
    """

    def __init__(
        self,
        manifest: Manifest,
        artefacts: Path,
        *,
        threads: int,
        precision: Precision = "auto",
        keep_compiled: bool = True,
    ) -> None:
        """Load and self-test.

        Args:
            manifest: the model.
            artefacts: what was built of it.
            threads: CPU threads, and images in work at a time.
            precision: "auto" is the fastest that the model has and the CPU has instructions for, see
                ``choose_precision``.
            keep_compiled: whether to load what an engine like this one compiled before, and to leave behind
                in ``artefacts`` what this one does.
        """
        self.name, self.version, self.input_size = manifest.name, manifest.version, manifest.input.size
        self.concurrency = 1  # it keeps its threads busy by itself
        self._manifest = manifest
        self.precision = precision
        try:
            core = openvino.Core()
            self.precision = choose_precision(
                precision,
                int8=manifest.int8 is not None,
                capabilities=core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
                flags=_cpu()[1],
            )
            compiled = _load(core, artefacts, self.precision, threads, keep_compiled)
            # Not AsyncInferQueue: its Python callback is released on a thread that the destructor waits for
            # while holding the GIL, and once in a while neither ever gets on.
            # More than threads: while the other threads of a replica hold Python up, the next image is there.
            self._requests = [_Request(compiled) for _ in range(2 * threads + 2)]
        except RuntimeError as error:
            raise EngineError(f"{self.name}: OpenVINO cannot load the model: {error}") from error
        run_self_test(self, artefacts)

    def predict(self, pixels: Pixels) -> Probabilities:
        """See ``Engine.predict``."""
        check_pixels(pixels, self.input_size)
        logits = np.empty((len(pixels), self._manifest.logits), np.float32)
        in_flight = len(self._requests)
        try:
            for place, (request, photo) in enumerate(zip(cycle(self._requests), pixels, strict=False)):
                if place >= in_flight:
                    logits[place - in_flight] = request.result()
                request.start(photo)
            for place in range(max(0, len(pixels) - in_flight), len(pixels)):
                logits[place] = self._requests[place % in_flight].result()
        except RuntimeError as error:
            raise EngineError(f"{self.name}: inference failed: {error}") from error
        check_finite(logits, self.name)
        return probabilities(logits, self._manifest.heads)

    def warm_up(self, max_batch: int) -> None:
        """Nothing to do: the self-test ran the only shape there is."""


class _Request:
    """An inference of one image. Its views of OpenVINO's own buffers spare a call and a copy each."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._input = self._request.get_input_tensor().data
        self._output = self._request.get_output_tensor().data

    def start(self, photo: Pixels) -> None:
        self._input[0] = photo
        self._request.start_async()

    def result(self) -> Any:
        """The logits, (C,), once they are there; overwritten by the next ``start``."""
        self._request.wait()
        return self._output[0]


def choose_precision(
    wanted: Precision, *, int8: bool, capabilities: Collection[str], flags: Collection[str]
) -> Literal["f32", "bf16", "int8"]:
    """What a model runs in on this CPU.

    Args:
        wanted: "int8" is for the models that have it; the others run as by "auto".
        int8: whether the model has it.
        capabilities: OPTIMIZATION_CAPABILITIES of OpenVINO's CPU device. Its "INT8" is on every x86 and says
            nothing of speed.
        flags: of /proc/cpuinfo.
    """
    if wanted in ("f32", "bf16"):
        return wanted
    if int8 and (wanted == "int8" or not _INTEGER_UNITS.isdisjoint(flags)):
        return "int8"
    return "bf16" if "BF16" in capabilities else "f32"


def _load(core: Any, artefacts: Path, precision: str, threads: int, keep: bool) -> Any:
    """A compiled model: the one that was kept, if there is a sound one, else compiled now."""
    model = artefacts / ("int8.xml" if precision == "int8" else "model.xml")
    options: dict[str, object] = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        # A pinned stream could not leave a core to which another replica pinned one of its own.
        "ENABLE_CPU_PINNING": False,
        # Ray counts logical cores; without this, one thread per physical core is the most we would get.
        "ENABLE_HYPER_THREADING": True,
        # What an int8 model does not round would else be rounded to bf16 as well.
        "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,
    }
    if not keep:
        return core.compile_model(model, "CPU", options)
    kept = _place_of_compiled(model, precision)
    if (blob := _read_compiled(kept)) is not None:
        with contextlib.suppress(RuntimeError):
            return core.import_model(blob, "CPU", options)
    compiled = core.compile_model(model, "CPU", options)
    with contextlib.suppress(OSError):  # a folder that may not be written to, a full disk
        _write_compiled(kept, compiled.export_model().getvalue())
    return compiled


def _place_of_compiled(model: Path, precision: str) -> Path:
    """A file of its own for each version of OpenVINO, CPU, model and precision.

    OpenVINO's own cache (CACHE_DIR) goes by the CPU's name, and many virtual machines share one.
    """
    name, flags = _cpu()
    parts: list[object] = [openvino.get_version(), name, sorted(flags), precision]
    with contextlib.suppress(OSError):  # no model: the compiler says so
        found = [path.stat() for path in (model, model.with_suffix(".bin"))]
        parts += [(one.st_size, int(one.st_mtime)) for one in found]
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return model.with_name(f"{precision}-{key}.compiled")


_DIGEST = hashlib.sha256
_DIGEST_BYTES = _DIGEST().digest_size


def _read_compiled(path: Path) -> Any:
    """What ``_write_compiled`` wrote; None where it is missing or damaged."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    blob, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:].tobytes()
    if len(blob) == 0 or _DIGEST(blob.data).digest() != digest:
        return None
    # A copy of OpenVINO's own: it computes on this memory, but keeps nobody else's from being freed.
    return openvino.Tensor(blob)


def _write_compiled(path: Path, blob: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".compiled-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.write(_DIGEST(blob).digest())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except OSError:
        Path(scratch).unlink(missing_ok=True)
        raise


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name and flags, as Linux tells them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return "", frozenset()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", ""), frozenset(fields.get("flags", fields.get("Features", "")).split())
