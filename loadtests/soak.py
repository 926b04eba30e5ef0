"""Ten minutes under load, and whether any process of the service grows: ``make soak``.

    python -m loadtests.soak --minutes 10 --load 0.7

Starts a service of its own and fills all its queues with twice as many clients as may have a photo in work:
memory that a process took for that it mostly keeps, and a later burst would look like growth. Then it finds
out how much of the mix the service takes (a closed loop), and sends Poisson arrivals at 70 % of that: photos
of several sizes, 15 % of them sent before. Memory of every process
is read from /proc every 5 s: the resident set (RSS), its proportional part of what is shared (PSS), and what
is its own alone (USS). A process grows where its USS rises by more than ``--allow`` MB over the second half,
along a line fitted to it that is clearly above the noise. The store keeps a result of every photo: it is
shown per result, and not judged. Photos are deleted a minute later, as a bucket's lifecycle would.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from loadtests import machine, open_loop, plots
from loadtests.latency import closed_loop
from loadtests.mix import DUPLICATES, parse_sizes
from loadtests.photos import make_photo
from loadtests.processes import STORE, title, tree
from loadtests.sending import Senders, Target, mixed
from loadtests.service import BUILD, Service, StartError, started

FOLDER: Final = BUILD / "soak"
SIZES: Final = "0.2=15,0.8=55,2=20,5=5,12=5"
EVERY_S: Final = 5.0
KEPT_S: Final = 60.0
"""How long a photo is kept: at 70 photos a second all of ten minutes would be 15 GB."""
FLOOD: Final = 128
FLOOD_S: Final = 15.0
CROWD: Final = 32
SEED: Final = 5
SURE: Final = 4.0
"""Standard errors that a slope must be above zero. Neighbouring readings resemble each other, so that fewer
would be chance."""
_MB: Final = 2**20


class Reading(NamedTuple):
    """Memory of one process at one moment, MB; ``seconds`` from the beginning of the load."""

    seconds: float
    pid: int
    name: str
    rss: float
    pss: float
    uss: float


@dataclass(frozen=True)
class Growth:
    """Memory of one process, MB (USS but for ``rss``), and its line over the second half.

    Attributes:
        slope: MB per minute.
        error: its standard error.
        rise: MB along the line over the second half.
    """

    name: str
    pid: int
    rss: float
    start: float
    middle: float
    end: float
    slope: float
    error: float
    rise: float

    def grows(self, allowed: float) -> bool:
        """Whether it rises by more than ``allowed`` MB, and not by chance."""
        return self.rise > allowed and self.slope > SURE * self.error


def read(service: Service, since: float) -> Iterator[Reading]:
    """Memory of every process of the service; ``since`` is of ``time.perf_counter``."""
    for process in tree(service.root) if service.root else []:
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            sizes = (memory.rss / _MB, memory.pss / _MB, memory.uss / _MB)
            yield Reading(time.perf_counter() - since, process.pid, title(process), *sizes)


@contextmanager
def watching(service: Service, every_s: float) -> Iterator[list[Reading]]:
    """Read memory ``every_s`` seconds in the background, and delete the photos."""
    readings: list[Reading] = []
    over, since = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not over.wait(every_s - (time.perf_counter() - since) % every_s):
            readings.extend(read(service, since))
            service.forget_photos(KEPT_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield readings
    finally:
        over.set()
        watcher.join()


def growths(readings: Sequence[Reading], seconds: float) -> list[Growth]:
    """How each process that was there at the end has grown; one that began late, from then on."""
    found = []
    last = max((reading.seconds for reading in readings), default=0.0)
    for pid in dict.fromkeys(reading.pid for reading in readings):
        own = [reading for reading in readings if reading.pid == pid]
        half = [reading for reading in own if reading.seconds >= seconds / 2]
        if len(half) < 3 or own[-1].seconds < last - 2 * EVERY_S:
            continue
        slope, error = line([reading.seconds / 60 for reading in half], [reading.uss for reading in half])
        found.append(
            Growth(
                own[-1].name, pid, own[-1].rss, own[0].uss, half[0].uss, own[-1].uss, slope, error,
                slope * (half[-1].seconds - half[0].seconds) / 60,
            )
        )  # fmt: skip
    return sorted(found, key=lambda growth: -growth.rise)


def ended(readings: Sequence[Reading]) -> list[str]:
    """The processes of the first readings that are not among the last; Ray's idle workers come and go."""
    if not readings:
        return []
    first, last = readings[0].seconds + 1, readings[-1].seconds - 1
    stayed = {reading.pid for reading in readings if reading.seconds >= last}
    began = [reading for reading in readings if reading.seconds <= first]
    return [reading.name for reading in began if reading.pid not in stayed and reading.name != "ray::IDLE"]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line through at least three points, and its standard error."""
    away = np.asarray(x) - np.mean(x)
    squares = float(away @ away)
    slope = float(away @ np.asarray(y)) / squares
    left = np.asarray(y) - np.mean(y) - slope * away
    return slope, float(np.sqrt(left @ left / (len(left) - 2) / squares))


def table(found: Sequence[Growth], allowed: float, results: int) -> Table:
    """A row per process, the one that rises most first."""
    result = Table(title="private memory (USS), MB; the line is over the second half")
    for name in ("process", "RSS", "start", "middle", "end", "MB/min", "±", "rise", ""):
        result.add_column(name, justify="left" if name in {"process", ""} else "right")
    for growth in found:
        verdict = "[red]grows" if growth.grows(allowed) else "flat"
        if growth.name == STORE:
            verdict = f"{(growth.end - growth.start) * 1024 / max(results, 1):.2f} KB a result"
        numbers = (growth.rss, growth.start, growth.middle, growth.end)
        result.add_row(
            growth.name, *(f"{value:.1f}" for value in numbers), f"{growth.slope:+.2f}",
            f"{growth.error:.2f}", f"{growth.rise:+.1f}", verdict,
        )  # fmt: skip
    return result


def write_csv(readings: Sequence[Reading], path: Path) -> None:
    """Every reading, a line each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Reading._fields)
        writer.writerows(readings)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a process grows or ends, or a photo got no 200; 2 without a service."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=0.7, help="share of what a closed loop has")
    parser.add_argument("--rate", type=float, help="photos per second instead")
    parser.add_argument("--sizes", type=parse_sizes, default=SIZES, help="megapixels and weights: 0.8=4,12=1")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two readings")
    parser.add_argument("--allow", type=float, default=5.0, help="MB a process may rise in the second half")
    options = parser.parse_args(arguments)
    console, seconds = Console(width=None if sys.stdout.isatty() else 120), options.minutes * 60
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = mixed({make_photo(size): weight for size, weight in options.sizes.items()}, DUPLICATES)
    try:
        with (
            console.status("starting the service") as status,
            started(FOLDER) as service,
            Senders() as senders,
        ):
            target = Target(service.url, service.key)
            status.update("capacity")
            machine.settle(30.0)
            closed_loop(senders, target, source, FLOOD, FLOOD_S)
            found = closed_loop(senders, target, source, CROWD, 10.0)
            rate = options.rate or options.load * found.images / found.wall_s
            service.forget_photos()
            status.update(f"{rate:.0f} photos a second for {options.minutes:g} minutes")
            moments = open_loop.arrivals(rate, seconds, SEED)
            with watching(service, options.every) as readings:
                sample = open_loop.open_loop(senders, target, source, moments, found.wanted_processes())
    except StartError as error:
        console.print(f"[red]{error}")
        return 2
    measured = open_loop.summarise(options.load, rate, seconds, sample)
    memory = growths(readings, seconds)
    console.print(machine.words())
    rejected = measured.rejected + measured.rejected_mute
    console.print(
        f"{measured.arrivals} photos, {rate:.1f}/s: {measured.answered} answered, "
        f"p50 {measured.p50_ms:.0f} ms, p99 {measured.p99_ms:.0f} ms; {rejected} rejected; "
        f"errors: {measured.errors or 'none'}; "
        f"processes that ended: {', '.join(ended(readings)) or 'none'}"
    )
    console.print(table(memory, options.allow, measured.answered))
    write_csv(readings, FOLDER / "memory.csv")
    figures = {
        "machine": machine.facts(), "load": asdict(measured), "memory": [asdict(growth) for growth in memory],
    }  # fmt: skip
    (FOLDER / "soak.json").write_text(json.dumps(figures, indent=2) + "\n")
    _plot(readings)
    console.print(f"Figures: {FOLDER}/soak.json, memory.csv, memory.png")
    growing = [growth.name for growth in memory if growth.name != STORE and growth.grows(options.allow)]
    return 1 if growing or ended(readings) or measured.answered < measured.arrivals else 0


def _plot(readings: Sequence[Reading]) -> None:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for reading in readings:
        minutes, memory = series.setdefault(f"{reading.name} ({reading.pid})", ([], []))
        minutes.append(reading.seconds / 60)
        memory.append(reading.uss)
    plots.soak(series, FOLDER / "memory.png")


if __name__ == "__main__":
    raise SystemExit(main())
