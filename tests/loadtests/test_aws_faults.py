"""What the program about failing stores makes of what it saw; the faults themselves take a whole service."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtests import aws_faults
from loadtests.aws_faults import FAULTS, Outcome, Row, summary, table, verdict
from loadtests.aws_stage import Leftovers
from loadtests.calls import Promise

A, B = "clinic-a", "clinic-b"
ROWS = [
    Row("S3 away", A, "POST photo", "503 images_unavailable", 90.4, ("504 deadline_exceeded",), 1003.0, 6.71),
    Row("S3 away", B, "POST photo", "503 images_unavailable", 80.0, slowest_ms=80.0, recovered_s=6.5),
    Row("S3 away", A, "GET diary", "200", 2.0, slowest_ms=2.0),
    Row("S3 away", B, "GET diary", "200", 2.0, slowest_ms=2.0),
    Row("S3 away", A, "GET readyz", "503 images_unavailable", 5.0, slowest_ms=5.0, recovered_s=0.1),
    Row("KMS away", A, "GET image", "200", 2.0, slowest_ms=2.0),
    Row("KMS away", B, "GET image", "500", 1500.0, slowest_ms=1500.0, recovered_s=None, wrong=("unplanned",)),
]
PROMISE = Promise(A, "POST photo", "1", "2")


def test_the_table_has_what_each_tenant_saw() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    for fault in ("S3 away", "KMS away"):
        console.print(table(fault, ROWS))
    lines = [line.strip("│ ") for line in console.export_text().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    assert cells[:2] == [
        ["POST photo", "503 images_unavailable", "90", "6.7 s", "503 images_unavailable", "80", "6.5 s"],
        ["then 504 deadline_exceeded"],
    ]
    assert cells[2] == ["GET diary", "200", "2", "", "200", "2"]
    assert cells[3] == ["GET readyz", "503 images_unavailable", "5", "0.1 s"]
    assert cells[4] == ["GET image", "200", "2", "", "500", "1500 (1500)", "never"]
    assert cells[5][-1] == "unplanned"


def test_the_summary_names_tenants_only_where_they_differ() -> None:
    assert summary(ROWS).splitlines()[2:] == [
        "| S3 away | POST photo, GET readyz: `503 images_unavailable` | 1003 ms | 6.7 s |",
        "| KMS away | GET image (clinic-b): `500` | 1500 ms | never |",
    ]
    assert summary(ROWS[2:4]).splitlines()[2:] == ["| S3 away | nothing | 2 ms | – |"]


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (Outcome(), False),
        (Outcome(ROWS[:5], [PROMISE], left=Leftovers(to_sweep=["a"], uploads=["b"])), False),
        (Outcome(ROWS[6:]), True),
        (Outcome([Row("f", A, "c", "200", 1.0, wrong=("tells a secret",))]), True),
        (Outcome([Row("f", A, "c", "503 x", 1.0, recovered_s=None)]), True),
        (Outcome(lost=["a photo"]), True),
        (Outcome(restarted=["Scorer while f"]), True),
        (Outcome(left=Leftovers(forgotten=["a"])), True),
        (Outcome(left=Leftovers(dead_letters=["not_found"])), False),
    ],
)
def test_it_has_failed_when_something_is_lost_or_stays_ill(outcome: Outcome, failed: bool) -> None:
    assert outcome.failed is failed


def test_the_verdict_counts_everything() -> None:
    left = Leftovers(["a"] * 2, ["b"] * 3, ["c"] * 4, ["d"] * 5)
    found = verdict(Outcome(ROWS, [PROMISE] * 9, ["lost"] * 8, ["Scorer"] * 7, left))
    assert [int(line.split()[0]) for line in found.splitlines()] == [9, 8, 2, 3, 4, 5, 7, 1, 1, 1]


def test_faults_have_names_of_their_own_and_an_unknown_one_is_said() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    with pytest.raises(SystemExit):
        aws_faults.main(["--only", "Mars"])
