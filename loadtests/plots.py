"""The figures of the benchmark and of the soak, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.figure import Figure

from loadtests.report import ROLES, Case, Findings

mpl.use("Agg")


def bench(found: Findings, path: Path) -> None:
    """Throughput over the floor, CPU per image by role, and the open loop's percentiles, side by side."""
    figure = Figure(figsize=(18, 5.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    for size in found.sizes:
        cases = sorted(case for case in found.closed if case.megapixels == size and not case.hits)
        points = [(case.clients, median(found.of_floor(case))) for case in cases if found.pairs(case)]
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=f"{size:g} MP")
    left.axhline(1, color="black", linestyle=":", label="floor")
    left.set(xscale="log", xlabel="clients", ylabel="images/s over the floor's", ylim=(0, 1.1))
    left.set_xticks(sorted({case.clients for case in found.closed}) or [1], minor=False)
    left.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    left.legend()

    cases = sorted(found.closed)
    _stack(middle, found, cases)

    rows = found.opened()
    loads = [f"{row.load:.0%}" for row in rows]
    for name in ("p50_ms", "p95_ms", "p99_ms", "p99_9_ms"):
        label = name.removesuffix("_ms").replace("_", ".")
        right.plot(loads, [getattr(row, name) for row in rows], marker="o", label=label)
    right.axhline(1000, color="black", linestyle=":", label="budget")
    right.set(yscale="log", xlabel="arrivals, share of capacity", ylabel="ms from the intended moment")
    right.legend()
    figure.savefig(path, dpi=110)


def _stack(axes: mpl.axes.Axes, found: Findings, cases: Sequence[Case]) -> None:
    labels = [f"{'hits' if case.hits else f'{case.megapixels:g} MP'}\n{case.clients}" for case in cases]
    below = [0.0] * len(cases)
    seen = {role for case in cases for run in found.closed[case] for role in run.cpu_ms}
    for role in [*(role for role in ROLES if role in seen), *sorted(seen - set(ROLES))]:
        heights = [median(run.cpu_ms.get(role, 0.0) for run in found.closed[case]) for case in cases]
        axes.bar(labels, heights, bottom=below, label=role)
        below = [bottom + height for bottom, height in zip(below, heights, strict=True)]
    for place, case in enumerate(cases):
        if (floors := found.floors.get(case.megapixels)) and not case.hits:
            floor_ms = median(run.floor.cpu_ms for run in floors)
            axes.hlines(floor_ms, place - 0.45, place + 0.45, color="black", linestyle=":")
    axes.set(ylabel="CPU ms per image (dotted: floor)", xlabel="clients")
    if seen:
        axes.legend()


def soak(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Memory (USS, MB) of each process over minutes."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots()
    for name, (minutes, memory) in series.items():
        axes.plot(minutes, memory, label=name)
    axes.set(xlabel="minutes", ylabel="private memory (USS), MB", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=110)
