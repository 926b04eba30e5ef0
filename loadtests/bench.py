"""How near the service comes to what its machine could do: ``make bench``.

    python -m loadtests.bench --rounds 3 --seconds 8 --clients 1 8 32 64 --sizes 0.8 12

Starts a service of its own (``--url``: one that runs) and measures in turn and several times over, so that
what disturbs the machine disturbs all of it:

- *floor*: decode and inference in a bare loop, one process per core (loadtests/floor.py);
- *closed*: clients that send the next photo when they have their answer; every photo is new;
- *hits*: 32 clients that all send the same photo;
- *open*: Poisson arrivals at shares of the capacity (loadtests/open_loop.py): what 32 clients got out of the
  service just before, in each round anew.

Every figure is the median of the rounds, with the least and the most; ratios are taken within a round. Loops
and clients run at the niceness of Ray's workers. CPU time is from /proc, per image answered 200.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtests import machine, open_loop, plots, report
from loadtests.floor import FloorBench
from loadtests.latency import closed_loop, summarise
from loadtests.photos import Photo, make_photo
from loadtests.processes import spent
from loadtests.report import Case, Findings, FloorRun, OpenRun, Run, Spent
from loadtests.sending import Sample, Senders, Target, fresh, repeated
from loadtests.service import BUILD, MODELS, Service, StartError, running
from loadtests.target import NoKeyError
from models.registry import DEFAULT

FOLDER: Final = BUILD / "bench"
PARTS: Final = ("floor", "closed", "hits", "open")
LOADS: Final = (0.5, 0.8, 0.95, 1.2)
CROWD: Final = 32
"""Clients of the cache hits, and of the closed loops whose throughput is called capacity."""
SEED: Final = 5
WARM_UP_S: Final = 2.0
SETTLE_S: Final = 30.0
"""At the beginning, when Ray still starts processes; before each floor a tenth of it."""

Step = tuple[str, Callable[[], None]]


class Bench:
    """A service, the loops and the clients beside it, and what was found so far."""

    def __init__(
        self, service: Service, senders: Senders, bare: FloorBench, photos: Mapping[float, Photo]
    ) -> None:
        self.found = Findings(sizes=list(photos))
        self._service, self._senders, self._bare, self._photos = service, senders, bare, photos
        self._target = Target(service.url, service.key)
        self._processes: dict[tuple[float, bool], int] = {}

    def floor(self, megapixels: float, seconds: float) -> None:
        """The floor for one size of photo, ``seconds`` on all cores and as long on one."""
        machine.settle(SETTLE_S / 10)
        before, busy, start = self._service.usage(), machine.busy_s(), time.perf_counter()
        floor = self._bare.measure(self._photos[megapixels].unique(), seconds)
        all_s = (time.perf_counter() - start) * machine.cores()
        idle_s = sum(spent(before, self._service.usage()).values())
        elsewhere_s = machine.busy_s() - busy - floor.spent_s - idle_s
        run = FloorRun(floor, idle_s / all_s, max(0.0, elsewhere_s / all_s))
        self.found.floors.setdefault(megapixels, []).append(run)

    def closed(self, case: Case, seconds: float) -> None:
        """One case of the closed loop."""
        self.found.closed.setdefault(case, []).append(self._loop(case, seconds))

    def gauge(self, megapixels: float, seconds: float) -> None:
        """The capacity at this moment."""
        run = self._loop(Case(megapixels, CROWD), seconds)
        self.found.capacities.append(run.measured.images_per_s)

    def _loop(self, case: Case, seconds: float) -> Run:
        photo = self._photos[case.megapixels]
        source = repeated(photo.unique()) if case.hits else fresh(photo)
        kind = (case.megapixels, case.hits)
        if case.hits or kind not in self._processes:
            # Also puts the photo of the hits into the cache: no photo of an earlier round is in the store.
            warm = closed_loop(self._senders, self._target, source, CROWD, WARM_UP_S)
            self._processes.setdefault(kind, warm.wanted_processes())
        load = partial(closed_loop, processes=self._processes[kind])
        sample, used = self._watched(lambda: load(self._senders, self._target, source, case.clients, seconds))
        return Run(summarise(case.clients, sample), used)

    def arrive(self, load: float, megapixels: float, seconds: float, seed: int) -> None:
        """Poisson arrivals at ``load`` times the capacity of this round."""
        rate = load * self.found.capacities[-1]
        moments, source = open_loop.arrivals(rate, seconds, seed), fresh(self._photos[megapixels])
        processes = self._processes.get((megapixels, False), 1)
        sample, used = self._watched(
            lambda: open_loop.open_loop(self._senders, self._target, source, moments, processes)
        )
        self.found.open.setdefault(load, []).append(OpenRun(rate, sample, used))

    def _watched(self, load: Callable[[], Sample]) -> tuple[Sample, Spent]:
        before, busy, start = self._service.usage(), machine.busy_s(), time.perf_counter()
        sample = load()
        by_role = spent(before, self._service.usage())
        elsewhere_s = machine.busy_s() - busy - sum(by_role.values()) - sample.cpu_s
        share = elsewhere_s / (time.perf_counter() - start) / machine.cores()
        self._service.forget_photos()
        return sample, Spent(by_role, max(0.0, share))


def closed_steps(bench: Bench, options: argparse.Namespace) -> Iterator[Step]:
    """One round of everything but the open loop, in order."""
    for size in options.sizes:
        if "floor" in options.only:
            yield f"floor, {size:g} MP", partial(bench.floor, size, options.seconds / 2)
        cases = [Case(size, clients) for clients in options.clients] if "closed" in options.only else []
        if "hits" in options.only and size == options.sizes[0]:
            cases.append(Case(size, CROWD, hits=True))
        for case in cases:
            yield f"{case.label}, {case.clients} clients", partial(bench.closed, case, options.seconds)


def measure(bench: Bench, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """All rounds; every second one backwards, so that a machine that grows warm favours nobody."""
    found, size = bench.found, options.sizes[0]
    machine.settle(SETTLE_S)
    for number in range(options.rounds):
        steps = list(closed_steps(bench, options))
        for words, step in steps if number % 2 == 0 else reversed(steps):
            say(f"round {number + 1} of {options.rounds}: {words}")
            step()
    found.open_seconds = options.open_seconds
    for number in range(options.rounds if "open" in options.only else 0):
        say(f"round {number + 1} of {options.rounds}: capacity")
        if options.capacity:
            found.capacities.append(options.capacity)
        else:
            bench.gauge(size, options.seconds)
        for load in options.loads:
            rate = load * found.capacities[-1]
            say(f"round {number + 1} of {options.rounds}: {rate:.0f} arrivals/s, {load:.0%} of capacity")
            bench.arrive(load, size, options.open_seconds, SEED + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where arrivals at up to 80 % were refused or lost, 2 without a service."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 220)
    FOLDER.mkdir(parents=True, exist_ok=True)
    photos = {size: make_photo(size) for size in options.sizes}
    try:
        with (
            console.status("starting the service") as status,
            running(options.url, FOLDER) as service,
            FloorBench(DEFAULT, MODELS) as bare,
            Senders() as senders,
        ):
            bench = Bench(service, senders, bare, photos)
            measure(bench, options, status.update)
    except (NoKeyError, StartError) as error:
        console.print(f"[red]{error}")
        return 2
    found = bench.found
    console.print(machine.words())
    if found.floors or found.closed:
        rounds = f"{options.seconds:g} s each, {options.rounds} rounds: median, least–most"
        console.print(report.closed_table(found, f"Closed loop, {rounds}"))
    if found.open:
        console.print(report.open_table(found))
    options.json.write_text(json.dumps(report.figures(found), indent=2) + "\n")
    plots.bench(found, options.json.with_suffix(".png"))
    console.print(f"Figures: {options.json}, {options.json.with_suffix('.png')}")
    return 1 if any(row.load <= 0.8 and row.answered < row.arrivals for row in found.opened()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a service that runs (default: start one)")
    parser.add_argument("--only", type=_parts, default=PARTS, help="of floor,closed,hits,open (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each closed loop, and of each floor")
    parser.add_argument("--open-seconds", type=float, default=20.0, help="of each load, in each round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[0.8, 12.0], help="megapixels; hits and open use the first"
    )
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of the capacity")
    parser.add_argument("--capacity", type=float, help="images/s (default: measured before each round)")
    parser.add_argument("--json", type=Path, default=FOLDER / "bench.json", metavar="FILE")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
