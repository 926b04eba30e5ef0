"""What a load test comes to, from rows as Locust has them."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from loadtests.outcome import REJECTED, faults, requests_sent, table, totals


@dataclass
class Row:
    name: str
    num_requests: int
    num_failures: int = 0
    num_none_requests: int = 0
    response_times: dict[int, int] = field(default_factory=dict)

    def get_response_time_percentile(self, percent: float) -> int:
        return round(percent * 100)


ROWS = [
    Row("photo 12 MP", 10, 2, response_times={100: 8, 900: 2}),
    Row("photo  2 MP", 40, response_times={100: 40}),
    Row("diary", 50, 1, response_times={5: 50}),
    Row(REJECTED, 7, num_none_requests=7),
]


def test_photos_are_those_that_were_scored_and_their_times_those_of_all() -> None:
    found = totals(ROWS, users=3, seconds=60)
    assert (found.photos, found.failed, found.rejected, found.users) == (48, 3, 7, 3)
    assert found.times == Counter({100: 48, 900: 2})


def test_a_rejection_is_no_request_of_its_own() -> None:
    assert requests_sent(ROWS) == 100


def test_rows_are_in_order_of_size_and_rejections_have_no_time() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(ROWS, 10))
    lines = [line.strip("│ \n").split("│") for line in console.export_text().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [
        ["diary", "50", "1", "5.0", "50", "95", "99"],
        ["photo  2 MP", "40", "0", "4.0", "50", "95", "99"],
        ["photo 12 MP", "10", "2", "1.0", "50", "95", "99"],
        [REJECTED, "7", "0", "0.7"],
    ]


@pytest.mark.parametrize(
    ("ratio", "crashes", "lost", "rows", "words"),
    [
        (0.03, 0, 0, ROWS, []),
        (0.02, 0, 0, ROWS, ["3 of 100 requests failed"]),
        (1, 2, 0, ROWS, ["2 times a user could not go on"]),
        (1, 0, 1, ROWS, ["1 of the workers went missing"]),
        (1, 0, 0, ROWS[2:], ["no photo was scored"]),
        (0, 1, 1, [], ["no photo", "1 times", "1 of the workers"]),
    ],
)
def test_why_it_is_not_passed(
    ratio: float, crashes: int, lost: int, rows: list[Row], words: list[str]
) -> None:
    found = list(faults(totals(rows, 1, 1), requests_sent(rows), ratio, crashes, lost))
    assert len(found) == len(words)
    assert all(said.startswith(begin) for said, begin in zip(found, words, strict=True))
