"""``python -m loadtests.inference [MODEL]``: inference on this machine's CPU, and how a scorer starts.

Everything that is compared runs in turn, round by round, in one process: compare within one run. Milliseconds
per image, medians of the rounds. The start is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import openvino
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.engines import Precision
from app.engines.openvino import OpenVinoEngine
from loadtests import machine
from models.build import build_apart
from models.manifest import Manifest, load_manifest

BATCHES: Final = (1, 2, 4, 8, 16)
THREADS: Final = (1, 2)
CALLS: Final = (1, 16)
_PHOTOS: Final = 48
"""Photos of one measurement: some tenths of a second, longer than what disturbs it."""

Measurement = Callable[[], object]
Figures = dict[str, float]


@dataclass
class Report:
    """Figures of one run, in ms per image unless their names say otherwise.

    Attributes:
        engine: by precision, threads and photos in a call.
        batches: by precision and static batch size, of the bare network on one thread.
        busy: of int8 or, where there is none, bf16: 16 photos in one call and in as many, alone and while
            another thread of this process computes in Python half of the time.
        cores_busy: by threads, the cores that 16 photos a call keep busy.
        system_threads: by threads, the system threads that an engine adds to a process.
        start: by how it starts, ms of each step from the start of the process to its first answer.
    """

    model: str
    machine: dict[str, Any]
    engine: Figures = field(default_factory=dict)
    batches: Figures = field(default_factory=dict)
    busy: Figures = field(default_factory=dict)
    cores_busy: Figures = field(default_factory=dict)
    system_threads: Figures = field(default_factory=dict)
    start: dict[str, Figures] = field(default_factory=dict)


def interleaved(measurements: Mapping[str, tuple[Measurement, int]], rounds: int) -> Figures:
    """Milliseconds per photo of each measurement, given what to run and how many photos that are."""
    times: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):  # the first one warms up
        for name, (run, photos) in measurements.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(1000 * (time.perf_counter() - started) / photos)
    return {name: median(found) for name, found in times.items()}


def photos_of(size: int, count: int) -> NDArray[np.uint8]:
    """Noise, uint8 (count, size, size, 3): a network computes the same on any photo."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def engine_speeds(engines: Mapping[tuple[str, int], OpenVinoEngine], rounds: int) -> Figures:
    """As the scorer calls it, by precision, threads and photos in a call."""
    return interleaved(
        {
            f"{precision}, {threads} threads, {count} a call": _calls(engine, count)
            for (precision, threads), engine in engines.items()
            for count in CALLS
        },
        rounds,
    )


def batch_speeds(
    manifest: Manifest, artefacts: Path, precisions: Sequence[Precision], rounds: int
) -> Figures:
    """The network alone, compiled for a fixed number of photos at a time, on one thread."""
    return interleaved(
        {
            f"{precision}, batch {batch}": _batches(manifest, artefacts, precision, batch)
            for precision in precisions
            for batch in BATCHES
        },
        rounds,
    )


def busy_speeds(engine: OpenVinoEngine, rounds: int) -> Figures:
    """While another thread of the process computes in Python half of the time, as an event loop may."""
    photos = photos_of(engine.input_size, 16)

    def one_by_one() -> None:
        for photo in photos:
            engine.predict(photo[None])

    measurements: dict[str, tuple[Measurement, int]] = {
        "a call of 16": (lambda: engine.predict(photos), 16),
        "16 calls": (one_by_one, 16),
    }
    alone = interleaved(measurements, rounds)
    with _python_at_work():
        beside = interleaved(measurements, rounds)
    return {f"{name}, alone": ms for name, ms in alone.items()} | {
        f"{name}, beside Python at work": ms for name, ms in beside.items()
    }


def cores_kept_busy(engine: OpenVinoEngine) -> float:
    """CPU seconds per second of this process during calls of 16 photos."""
    photos = photos_of(engine.input_size, 16)
    engine.predict(photos)
    started, used = time.perf_counter(), time.process_time()
    for _ in range(8):
        engine.predict(photos)
    return (time.process_time() - used) / (time.perf_counter() - started)


def start(ref: str, models_dir: Path, precision: str, *, kept: bool, ray: bool) -> Figures:
    """Milliseconds of each step of a process from its start to its first answer."""
    program = _START.format(
        imports="import ray.serve._private.replica" if ray else "pass",
        module="app.deployments.scorer" if ray else "app.engines",
        ref=ref,
        models_dir=str(models_dir),
        precision=precision,
        kept=kept,
    )
    begun = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    found: list[tuple[str, float]] = json.loads(done.stdout.splitlines()[-1])
    steps: Figures = {}
    for name, at in found:  # perf_counter is one clock for all processes of a Linux machine
        steps[name] = 1000 * (at - begun)
        begun = at
    return steps


# What a scorer replica does, in its order, with the clock read in between.
_START = """
import json, time
marks = []
def mark(name): marks.append((name, time.perf_counter()))
mark("Python")
{imports}
mark("Ray Serve")
import {module}
from models.build import is_built
from models.manifest import load_manifest
mark("import the scorer")
from pathlib import Path
manifest = load_manifest({ref!r})
folder = Path({models_dir!r}) / manifest.folder
assert is_built(manifest, folder.parent)
mark("read the manifest, check the build")
from app.engines import openvino as engines
mark("import OpenVINO")
self_test, engines.run_self_test = engines.run_self_test, lambda *_: mark("load the model")
engine = engines.OpenVinoEngine(manifest, folder, threads=1, precision={precision!r}, keep_compiled={kept})
self_test(engine, folder)
mark("self-test")
import numpy
engine.predict(numpy.zeros((1, engine.input_size, engine.input_size, 3), numpy.uint8))
mark("first answer")
print(json.dumps(marks))
"""


def _calls(engine: OpenVinoEngine, count: int) -> tuple[Measurement, int]:
    photos = photos_of(engine.input_size, count)
    repeats = _PHOTOS // count

    def run() -> None:
        for _ in range(repeats):
            engine.predict(photos)

    return run, repeats * count


def _batches(
    manifest: Manifest, artefacts: Path, precision: Precision, batch: int
) -> tuple[Measurement, int]:
    size, core = manifest.input.size, openvino.Core()
    model = core.read_model(artefacts / ("int8.xml" if precision == "int8" else "model.xml"))
    model.reshape([batch, size, size, 3])
    options = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    photos, repeats = photos_of(size, batch), max(_PHOTOS // batch, 1)

    def run() -> None:
        for _ in range(repeats):
            request.infer({0: photos})

    return run, repeats * batch


@contextmanager
def _python_at_work() -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(manifest: Manifest, models_dir: Path, rounds: int) -> Report:
    """Everything; the model is built first where it is not yet."""
    build_apart([manifest], models_dir)
    artefacts = models_dir / manifest.folder
    precisions: tuple[Precision, ...] = ("f32", "bf16", "int8") if manifest.int8 else ("f32", "bf16")
    report = Report(manifest.ref, machine.facts())
    engines: dict[tuple[str, int], OpenVinoEngine] = {}
    for precision in precisions:
        for threads in THREADS:
            before = psutil.Process().num_threads()
            engine = OpenVinoEngine(manifest, artefacts, threads=threads, precision=precision)
            engine.predict(photos_of(engine.input_size, 16))
            engines[precision, threads] = engine
            added = psutil.Process().num_threads() - before
            report.system_threads[f"{precision}, {threads} threads"] = added
    for threads in THREADS:
        report.cores_busy[f"{threads} threads"] = cores_kept_busy(engines[precisions[-1], threads])
    report.engine = engine_speeds(engines, rounds)
    report.batches = batch_speeds(manifest, artefacts, precisions, rounds)
    report.busy = busy_speeds(engines[precisions[-1], 1], rounds)
    for precision in precisions:
        for kept in (False, True):
            way = f"{precision}, {'compiled before' if kept else 'to be compiled'}"
            if kept:  # so that there is something to load
                OpenVinoEngine(manifest, artefacts, threads=1, precision=precision)
            runs = [start(manifest.ref, models_dir, precision, kept=kept, ray=True) for _ in range(3)]
            report.start[way] = {name: median(run[name] for run in runs) for name in runs[0]}
    return report


def _show(report: Report, console: Console) -> None:
    console.print(f"{report.model}; {machine.words()}")
    for title, figures in (
        ("ms per image, the engine", report.engine),
        ("ms per image, the bare network on one thread", report.batches),
        ("ms per image, beside other work in Python", report.busy),
        ("cores kept busy", report.cores_busy),
        ("system threads of an engine", report.system_threads),
    ):
        table = Table(title, "", "of the first", box=None)
        first = next(iter(figures.values()))
        for name, figure in figures.items():
            table.add_row(name, f"{figure:.2f}", f"{figure / first:.2f}" if first else "–")
        console.print(table)
    steps = next(iter(report.start.values()))
    table = Table("ms from the start of the process", *report.start, box=None)
    for step in steps:
        table.add_row(step, *(f"{figures[step]:.0f}" for figures in report.start.values()))
    table.add_row("all", *(f"{sum(figures.values()):.0f}" for figures in report.start.values()))
    console.print(table)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure a model and print; ``--out`` also writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.inference", description="Inference on a CPU.")
    parser.add_argument("model", nargs="?", default="meals-lite2", metavar="MODEL")
    parser.add_argument("--models-dir", type=Path, default=Path("build/models"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median is taken")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args(None if arguments is None else list(arguments))
    report = measure(load_manifest(options.model), options.models_dir, options.rounds)
    _show(report, Console())
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(asdict(report), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
