"""The benchmark's tables and figures: ratios within a round, medians over them, nothing lost."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from loadtests import latency, plots, report
from loadtests.floor import Floor
from loadtests.report import Case, Findings, FloorRun, OpenRun, Run, Spent
from loadtests.sending import Sample

CASE = Case(0.8, 32)


def run(images: int, errors: int = 0) -> Run:
    sample = Sample(np.full(images, 0.02), Counter({"504": errors} if errors else {}), wall_s=1.0, cpu_s=0.1)
    return Run(latency.summarise(32, sample), Spent({"Ingress": 0.2, "New": 0.1}, 0.25))


def floor(images_per_s: float) -> FloorRun:
    return FloorRun(Floor(images_per_s, cpu_ms=8.0, alone_ms=7.0, decode_ms=4.0, spent_s=1.0), 0.01, 0.02)


@pytest.fixture
def found() -> Findings:
    rejected = Sample(np.full(90, 0.5), Counter({"429": 10}), Counter({True: 10}), np.zeros(100), 1.0, 0.1)
    return Findings(
        sizes=[0.8],
        open_seconds=1.0,
        capacities=[80.0, 100.0, 130.0],
        floors={0.8: [floor(200), floor(100), floor(250)]},
        closed={CASE: [run(100), run(80), run(100, errors=3)], Case(0.8, 32, hits=True): [run(1000)]},
        open={1.2: [OpenRun(120.0, rejected, Spent({"Ingress": 0.2}, 0.0))] * 2},
    )


def words(table: Table) -> str:
    console = Console(width=250, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_ratios_are_taken_within_a_round(found: Findings) -> None:
    assert found.of_floor(CASE) == [0.5, 0.8, 0.4]
    assert found.throughput(CASE) == 100
    assert found.throughput(Case(0.8, 1)) is None


def test_cpu_is_per_image_and_by_role() -> None:
    one = run(100)
    assert one.cpu_ms == pytest.approx({"Ingress": 2.0, "New": 1.0})
    assert one.cpu_total_ms == pytest.approx(3.0)


def test_tables_have_every_row_and_say_what_went_wrong(found: Findings) -> None:
    closed, opened = words(report.closed_table(found, "title")), words(report.open_table(found))
    for word in ("0.8 MP, floor", "decode 4.0, inference 3.0", "cache hits", "3 × 504", "New", "25%"):
        assert word in closed
    assert "0.50" in closed
    assert "0.40–0.80" in closed
    assert "120%" in opened
    assert "90.0" in opened  # goodput: 180 within a second, in two rounds of a second


def test_arrivals_of_all_rounds_are_pooled(found: Findings) -> None:
    (row,) = found.opened()
    assert (row.arrivals, row.answered, row.rejected, row.goodput) == (200, 180, 20, 90)


def test_figures_are_json_with_every_round(found: Findings, tmp_path: Path) -> None:
    figures = json.loads(json.dumps(report.figures(found)))
    (case,) = (case for case in figures["closed"] if not case["hits"])
    assert (case["of_floor"], len(case["rounds"])) == (0.5, 3)
    assert len(figures["floor"][0]["rounds"]) == 3
    assert len(figures["open"][0]["rounds"]) == 2
    plots.bench(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    plots.bench(Findings(sizes=[0.8], floors={0.8: [floor(200)]}), tmp_path / "bench.png")
    nothing = Findings(sizes=[0.8], closed={CASE: [run(10)]})
    assert "× floor" in words(report.closed_table(nothing, "title"))
    assert report.figures(nothing)["closed"][0]["of_floor"] is None
    plots.bench(nothing, tmp_path / "bench.png")
