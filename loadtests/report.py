"""What `make bench` found, as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from rich.table import Table

from loadtests import machine, open_loop
from loadtests.floor import Floor
from loadtests.latency import Measured
from loadtests.processes import HAPROXY, RAY, STORE
from loadtests.sending import Sample

ROLES: Final = ("Ingress", "Preprocessor", "Scorer", HAPROXY, STORE, RAY)
"""The order of columns; deployments that are not named here come last."""


@dataclass(frozen=True, order=True)
class Case:
    """What the service is measured with."""

    megapixels: float
    clients: int
    hits: bool = False

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.megapixels:g} MP, " + ("cache hits" if self.hits else "all new")


@dataclass(frozen=True)
class Spent:
    """Where CPU went while something was measured.

    Attributes:
        by_role: CPU seconds of the service's processes; empty where they are out of sight.
        elsewhere: share of the machine, 0 to 1, that neither service nor clients nor floor took: other
            programs, the kernel's own threads, and what the host kept.
    """

    by_role: dict[str, float]
    elsewhere: float


@dataclass(frozen=True)
class Run:
    """One case in one round."""

    measured: Measured
    spent: Spent

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds per image by role."""
        images = max(self.measured.images, 1)
        return {role: seconds * 1000 / images for role, seconds in self.spent.by_role.items()}

    @property
    def cpu_total_ms(self) -> float:
        """Of the service, without the clients."""
        return sum(self.cpu_ms.values())


@dataclass(frozen=True)
class FloorRun:
    """The floor in one round, and what the idle service took of the machine meanwhile, 0 to 1."""

    floor: Floor
    idle: float
    elsewhere: float


@dataclass(frozen=True)
class OpenRun:
    """Arrivals at one rate in one round."""

    rate: float
    sample: Sample
    spent: Spent


@dataclass
class Findings:
    """Everything that was measured, by what it was, round by round."""

    sizes: Sequence[float]
    open_seconds: float = 0.0
    capacities: list[float] = field(default_factory=list)
    floors: dict[float, list[FloorRun]] = field(default_factory=dict)
    closed: dict[Case, list[Run]] = field(default_factory=dict)
    open: dict[float, list[OpenRun]] = field(default_factory=dict)

    @property
    def capacity(self) -> float | None:
        """Images per second, the median of those that the rounds of the open loop began with."""
        return median(self.capacities) if self.capacities else None

    def throughput(self, case: Case) -> float | None:
        """Images per second, the median of the rounds; None: not measured."""
        runs = self.closed.get(case)
        return median(run.measured.images_per_s for run in runs) if runs else None

    def pairs(self, case: Case) -> list[tuple[Run, Floor]]:
        """A case and the floor of the same round, as far as both were measured."""
        floors = [run.floor for run in self.floors.get(case.megapixels, ())]
        return list(zip(self.closed[case], floors, strict=False))

    def of_floor(self, case: Case) -> list[float]:
        """Throughput of a case over that of the floor, round by round."""
        return [run.measured.images_per_s / floor.images_per_s for run, floor in self.pairs(case)]

    def opened(self) -> list[open_loop.Measured]:
        """The open loop by load, the arrivals of all rounds pooled."""
        return [
            open_loop.summarise(
                load, median(run.rate for run in runs), self.open_seconds * len(runs),
                Sample.merge([run.sample for run in runs]),
            )
            for load, runs in sorted(self.open.items())
        ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Median, and where there are several values the least and the most in a second line; three digits."""
    if not values:
        return ""
    middle = _number(median(values))
    return f"{middle}\n{_number(min(values))}–{_number(max(values))}" if len(values) > 1 else middle


def _number(value: float) -> str:
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def closed_table(found: Findings, title: str) -> Table:
    """Floor and service, a row each; CPU by role in milliseconds per image."""
    table = Table(title=title, caption=_caption(found))
    table.add_column("what")
    table.add_column("clients")
    for name in ("images/s", "× floor", "p50 ms", "– floor", "p99 ms", "CPU ms", "× floor"):
        table.add_column(name, justify="right")
    roles = _roles(found)
    for name in (*roles, "client", "elsewhere"):
        table.add_column(name, justify="right", style="dim")
    table.add_column("errors")
    for size in found.sizes:
        if size in found.floors:
            table.add_row(*_floor_cells(size, found.floors[size], len(roles)))
        for case in sorted(case for case in found.closed if case.megapixels == size):
            table.add_row(*_cells(found, case, roles))
        table.add_section()
    return table


def _caption(found: Findings) -> str:
    words = "elsewhere: the most of the machine's CPU that went to others in any round"
    if not found.floors:
        return words
    idle = median(run.idle for runs in found.floors.values() for run in runs)
    return f"{words}; beside the floor the idle service took {idle:.1%} of it"


def _roles(found: Findings) -> list[str]:
    seen = {role for runs in found.closed.values() for run in runs for role in run.spent.by_role}
    return [role for role in ROLES if role in seen] + sorted(seen - set(ROLES))


def _floor_cells(size: float, runs: Sequence[FloorRun], roles: int) -> Iterator[str]:
    floors = [run.floor for run in runs]
    decode_ms = median(floor.decode_ms for floor in floors)
    infer_ms = median(floor.alone_ms - floor.decode_ms for floor in floors)
    yield from (f"{size:g} MP, floor", "–", spread([floor.images_per_s for floor in floors]), "1")
    yield from (spread([floor.alone_ms for floor in floors]), "0", "")
    yield from (spread([floor.cpu_ms for floor in floors]), "1", *[""] * (roles + 1))
    yield f"{max(run.elsewhere for run in runs):.0%}"
    yield f"decode {decode_ms:.1f}, inference {infer_ms:.1f} ms"


def _cells(found: Findings, case: Case, roles: Sequence[str]) -> Iterator[str]:
    runs, pairs = found.closed[case], found.pairs(case)
    seen = [run.measured for run in runs]
    yield from (case.label, str(case.clients))
    yield spread([one.images_per_s for one in seen])
    yield spread(found.of_floor(case))
    yield spread([one.p50_ms for one in seen])
    yield f"{median(run.measured.p50_ms - floor.alone_ms for run, floor in pairs):+.1f}" if pairs else ""
    yield spread([one.p99_ms for one in seen])
    yield spread([run.cpu_total_ms for run in runs])
    yield f"{median(run.cpu_total_ms / floor.cpu_ms for run, floor in pairs):.2f}" if pairs else ""
    for role in roles:
        yield f"{median(run.cpu_ms.get(role, 0.0) for run in runs):.2f}"
    yield f"{median(one.client_cpu_ms_per_image for one in seen):.2f}"
    yield f"{max(run.spent.elsewhere for run in runs):.0%}"
    yield _words([one.errors for one in seen])


def _words(errors: Sequence[Mapping[str, int]]) -> str:
    names = dict.fromkeys(name for found in errors for name in found)
    return ", ".join(f"{sum(found.get(name, 0) for found in errors)} × {name}" for name in names) or "none"


def open_table(found: Findings) -> Table:
    """The open loop, a row per load."""
    capacity = found.capacity or 1.0
    table = Table(
        title=f"{found.sizes[0]:g} MP, Poisson arrivals, latency from the intended moment; "
        f"capacity {capacity:.1f} images/s"
    )
    for name in (
        "load", "arrivals/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms", "goodput/s", "× capacity",
        "429", "429 mute", "lost", "lag p99 ms", "client CPU ms", "elsewhere",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    table.add_column("errors")
    for row in found.opened():
        times = (row.p50_ms, row.p95_ms, row.p99_ms, row.p99_9_ms, row.max_ms)
        elsewhere = max(run.spent.elsewhere for run in found.open[row.load])
        table.add_row(
            f"{row.load:.0%}", f"{row.arrivals / row.seconds:.1f}", *(f"{value:.0f}" for value in times),
            f"{row.goodput:.1f}", f"{row.goodput / capacity:.2f}", str(row.rejected), str(row.rejected_mute),
            str(sum(row.errors.values())), f"{row.lag_p99_ms:.1f}", f"{row.client_cpu_ms_per_image:.2f}",
            f"{elsewhere:.0%}", _words([row.errors]),
        )  # fmt: skip
    return table


def figures(found: Findings) -> dict[str, Any]:
    """The machine and everything that was measured, round by round; medians beside."""
    return {
        "machine": machine.facts(),
        "capacity": found.capacity,
        "floor": [
            {"megapixels": size, "rounds": [asdict(run) for run in runs]}
            for size, runs in found.floors.items()
        ],
        "closed": [
            {
                **asdict(case),
                "images_per_s": found.throughput(case),
                "of_floor": median(found.of_floor(case)) if found.pairs(case) else None,
                "cpu_ms": median(run.cpu_total_ms for run in runs),
                "rounds": [asdict(run) | {"cpu_ms": run.cpu_ms} for run in runs],
            }
            for case, runs in sorted(found.closed.items())
        ],
        "open": [
            {
                **asdict(row),
                "rounds": [{"rate": run.rate, **asdict(run.spent)} for run in found.open[row.load]],
            }
            for row in found.opened()
        ],
    }
