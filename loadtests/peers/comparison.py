"""What was measured, made into medians and ratios; and whether two servers answer the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from rich.table import Table

from loadtests.latency import Measured
from loadtests.peers.job import Level

TOLERANCE: Final = 1e-3
"""Largest difference of two probabilities that still are the same answer."""
_OWN: Final = {"id", "created_at", "tip"}
"""What a result has of its own: the tip is drawn by the result's id."""


@dataclass(frozen=True)
class Run:
    """One server under one load in one round.

    Attributes:
        server: its name.
        level: the job it was asked for.
        round: which one, from 0.
        measured: what the clients saw.
        cpu_ms: CPU milliseconds per image of all processes of the server together, its store included.
        options: of the server.
    """

    server: str
    level: Level
    round: int
    measured: Measured
    cpu_ms: float
    options: dict[str, int]


@dataclass(frozen=True)
class Row:
    """The rounds of one server under one load: medians, and the least and most images/s of a round.

    ``to_best_peer`` is the images/s as a multiple of those of the best peer at the same load; None where no
    peer was measured.
    """

    server: str
    level: Level
    clients: int
    images_per_s: float
    least: float
    most: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    errors: int
    to_best_peer: float | None


def rows(runs: Sequence[Run], own: str) -> list[Row]:
    """Medians over the rounds, in the order of level, clients and images/s.

    Args:
        runs: of all servers.
        own: the server that is no peer.
    """
    loads = dict.fromkeys((run.level, run.measured.clients) for run in runs)
    return [row for level, clients in loads for row in _of_load(runs, level, clients, own)]


def _of_load(runs: Sequence[Run], level: Level, clients: int, own: str) -> list[Row]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        if (run.level, run.measured.clients) == (level, clients):
            found.setdefault(run.server, []).append(run)
    rates = {server: median(run.measured.images_per_s for run in of) for server, of in found.items()}
    best = max((rate for server, rate in rates.items() if server != own), default=0.0)
    return [
        Row(
            server, level, clients, rates[server],
            min(run.measured.images_per_s for run in of),
            max(run.measured.images_per_s for run in of),
            median(run.measured.p50_ms for run in of),
            median(run.measured.p99_ms for run in of),
            median(run.cpu_ms for run in of),
            sum(sum(run.measured.errors.values()) for run in of),
            rates[server] / best if best else None,
        )
        for server, of in sorted(found.items(), key=lambda item: -rates[item[0]])
    ]  # fmt: skip


def table(of: Sequence[Row], title: str) -> Table:
    """Rows of one level for people."""
    result = Table(title=title, box=None, padding=(0, 1))
    for column in (
        "clients",
        "server",
        "images/s",
        "range",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "× best",
        "errors",
    ):
        result.add_column(column, justify="left" if column == "server" else "right", no_wrap=True)
    for row in of:
        ratio = "–" if row.to_best_peer is None else f"{row.to_best_peer:.2f}"
        result.add_row(
            str(row.clients), row.server, f"{row.images_per_s:.1f}", f"{row.least:.0f}–{row.most:.0f}",
            f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.cpu_ms:.1f}", ratio, str(row.errors),
        )  # fmt: skip
    return result


def differences(one: bytes, other: bytes) -> list[str]:
    """Where two answers to the same photo differ: text at all, numbers by more than ``TOLERANCE``."""
    return list(_differing(json.loads(one), json.loads(other), ""))


def _differing(one: Any, other: Any, where: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        keys = [key for key in one if key not in _OWN]
        return [found for key in keys for found in _differing(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, (a, b) in pairs for found in _differing(a, b, f"{where}[{i}]")]
    same = (
        abs(one - other) <= TOLERANCE if isinstance(one, float) and isinstance(other, float) else one == other
    )
    return [] if same else [f"{where}: {one!r} and {other!r}"]
