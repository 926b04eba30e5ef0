"""The GPU scorer against what its device could do.

    python -m loadtests.gpu --json build/gpu.json

Needs no service and no Ray. First the device's own ceilings: a large bfloat16 matrix product, a large copy
within its memory, a large copy from page-locked memory. Then the engine: every batch size, kernel by kernel
and as graphs, one call at a time and as many as it overlaps. Then decoding on the GPU, and the whole path
with N processes that decode on the CPU.

Each figure of the engine stands beside the ceiling that loadtests/ceilings.py works out for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # so that what is missing on a bare machine is told in words, see main
    import torch
    from rich.console import Console
    from rich.table import Table

    from app.engines.cuda import CudaEngine, Mode
    from loadtests.gpu_runs import Decoding, Fed, Row
    from models.manifest import Manifest

_Made = TypeVar("_Made")

PACKAGES = "torch torchvision timm safetensors pydantic rich numpy pillow"
"""What this program imports beside its own repository; ``pip install`` takes the line as it is."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for people."""
    from rich.table import Table  # noqa: PLC0415

    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def engine_table(rows: Sequence[Row]) -> Table:
    """Images/s, how long a call takes, and the share of the ceiling."""
    return table(
        "engine",
        ("mode", "batch", "calls", "images/s", "p50 ms", "p99 ms", "ceiling", "of it"),
        [
            (
                row.mode, str(row.batch), str(row.calls), f"{row.images_per_s:.0f}", f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}", f"{row.ceiling:.0f}", f"{row.images_per_s / row.ceiling:.0%}",
            )
            for row in rows
        ],
    )  # fmt: skip


def decoding_table(rows: Sequence[Decoding]) -> Table:
    """Photos/s by the device's decoder."""
    return table(
        "decoding on the device",
        ("megapixels", "batch", "decoded/s", "scored/s", "all decoded"),
        [
            (
                f"{row.megapixels:g}", str(row.batch), f"{row.decoded_per_s:.0f}",
                f"{row.scored_per_s:.0f}", "yes" if row.kept else "NO",
            )
            for row in rows
        ],
    )  # fmt: skip


def fed_table(rows: Sequence[Fed]) -> Table:
    """Images/s of the whole path."""
    return table(
        "the whole path, decoding on the CPU",
        ("megapixels", "decoders", "images/s", "per decoder", "mean batch"),
        [
            (
                f"{row.megapixels:g}", str(row.decoders), f"{row.images_per_s:.0f}",
                f"{row.images_per_s / row.decoders:.0f}", f"{row.mean_batch:.1f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    import torch  # noqa: PLC0415

    info = Path("/proc/cpuinfo")
    name = info.read_text().partition("model name")[2].partition(":")[2] if info.is_file() else ""
    found = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": name.partition("\n")[0].strip() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 2 where a package or the device is missing."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="a torch device name (%(default)s)")
    parser.add_argument("--model", default="meals-lite2", help="a model of models/manifests (%(default)s)")
    parser.add_argument("--built", type=Path, default=Path("build/models"), help="folder of built models")
    parser.add_argument("--modes", nargs="+", default=["eager", "graphs"], help="eager, graphs, compiled")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--lanes", type=int, default=2, help="calls that the engine overlaps (%(default)s)")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[0.8, 12.0])
    parser.add_argument("--decoders", type=int, nargs="*", help="CPU processes (1, 2, 4, … up to the cores)")
    parser.add_argument("--feed", type=int, default=64, help="largest batch of the whole path (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    try:
        return _measure(options)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        sys.stderr.write(f"{missing} is missing; needed are: pip install {PACKAGES}\n")
        return 2


def _measure(options: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    from loadtests.ceilings import ceilings, cost  # noqa: PLC0415
    from loadtests.gpu_runs import artefacts, decoding_rows, engine_rows, fed_rows  # noqa: PLC0415
    from models.manifest import load_manifest  # noqa: PLC0415

    console = Console()
    device, manifest, seconds = torch.device(options.device), load_manifest(options.model), options.seconds
    if device.type == "cuda" and not torch.cuda.is_available():
        console.print("[red]there is no GPU here that torch can use; --device cpu tries the program itself")
        return 2
    figures: dict[str, Any] = {"machine": machine(device), "model": manifest.ref, "options": vars(options)}
    console.print(figures["machine"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = artefacts(manifest, options.built, Path(scratch))
        best = ceilings(device, seconds)
        needs = cost(manifest, folder, 2 if device.type == "cuda" else 4)
        figures |= {"ceilings": asdict(best), "cost": asdict(needs)}
        bus = f", {best.bus / 1e9:.1f} GB/s over the bus" if best.bus else ""
        console.print(
            f"ceilings: {best.flops / 1e12:.1f} TFLOP/s, {best.memory / 1e9:.0f} GB/s{bus}\n"
            f"{manifest.ref}: {needs.flops / 1e9:.2f} GFLOP and {needs.activations / 1e6:.1f} MB an image, "
            f"weights {needs.weights / 1e6:.1f} MB"
        )
        engine: CudaEngine | None = None
        rows: list[Row] = []
        for mode in options.modes:
            engine = None  # its memory is the next one's
            start = partial(_start, manifest, folder, options, mode)
            for engine, start_s in _tried(console, mode, start):
                console.print(f"{mode}: {start_s:.1f} s to load, warm up and capture")
                figures.setdefault("start_s", {})[mode] = start_s
                rows += engine_rows(engine, mode, options.batches, lambda n: needs.ceiling(n, best), seconds)
    console.print(engine_table(rows))
    decoded: list[Decoding] = []
    fed: list[Fed] = []
    if running := engine:
        decoded = _tried(
            console,
            "decoding on the device",
            lambda: decoding_rows(running, manifest, options.megapixels, options.feed, seconds),
        )
        console.print(decoding_table(decoded))
        fed = _tried(
            console,
            "the whole path",
            lambda: fed_rows(
                running, manifest, options.megapixels, options.decoders or _powers(), options.feed, seconds
            ),
        )
        console.print(fed_table(fed))
    for name, measured in (("engine", rows), ("decoding", decoded), ("fed", fed)):
        figures[name] = [asdict(row) for row in measured]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2, default=str) + "\n")
    return 0 if rows else 2


def _tried(console: Console, what: str, make: Callable[[], Iterable[_Made]]) -> list[_Made]:
    """What ``make`` makes, as far as it gets: one part that cannot run takes no other with it."""
    from app.engines import EngineError  # noqa: PLC0415
    from loadtests.decoders import DecodersError  # noqa: PLC0415

    made: list[_Made] = []
    try:
        made.extend(make())
    except ModuleNotFoundError as error:
        console.print(f"[yellow]{what} is left out: {error.name} is missing")
    except (EngineError, DecodersError) as error:
        console.print(f"[yellow]{what} is left out: {error}")
    return made


def _powers() -> list[int]:
    """1, 2, 4, … and as many as there are cores."""
    cores = len(os.sched_getaffinity(0))
    return [*(1 << n for n in range(cores.bit_length()) if 1 << n < cores), cores]


def _start(
    manifest: Manifest, folder: Path, options: argparse.Namespace, mode: Mode
) -> list[tuple[CudaEngine, float]]:
    """An engine that is warm, and how many seconds that took."""
    from app.engines.cuda import CudaEngine  # noqa: PLC0415

    start = time.perf_counter()
    engine = CudaEngine(manifest, folder, device=options.device, mode=mode, lanes=options.lanes)
    engine.warm_up(max([*options.batches, options.feed]))
    return [(engine, time.perf_counter() - start)]


if __name__ == "__main__":
    raise SystemExit(main())
