"""The load test as it is started from a shell, against a service that counts: alone and with workers.

Locust patches the standard library when it is imported, so it runs in processes of its own. The runs are all
under way at once, as each mostly waits.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.serving import free_port
from loadtests.shapes import Shape
from tests.loadtests.fake_service import KEY, FakeService

ROOT = Path(__file__).parents[2]
USERS = 6


@dataclass
class Run:
    """One load test against a service of its own."""

    service: FakeService
    folder: Path
    options: tuple[str, ...]
    process: subprocess.Popen[str] = field(init=False)
    said: str = ""

    def start(self) -> None:
        sizes = "0.05=2,0.1=1"
        files = ["--html", str(self.folder / "report.html"), "--csv", str(self.folder / "figures")]
        load = ["-u", str(USERS), "-r", "3", "-t", "15", "--only-summary", "--sizes", sizes, *files]
        # Not a pipe: nobody reads it as long as others run.
        with (self.folder / "said").open("w") as said:
            self.process = locust("--host", self.service.url, *load, *self.options, stdout=said)

    def end(self) -> int:
        status = self.process.wait(90)
        self.said = (self.folder / "said").read_text()
        return status

    @property
    def rows(self) -> dict[str, tuple[int, int]]:
        """What it says of each kind of request: sent, failed."""
        found = re.findall(r"^│ ([^…│]+?) +│ +(\d+) │ +(\d+) │", self.said, re.MULTILINE)
        return {name: (int(sent), int(failed)) for name, sent, failed in found}

    @property
    def history(self) -> list[int]:
        """The number of users over time."""
        with (self.folder / "figures_stats_history.csv").open() as file:
            return [int(row["User Count"]) for row in csv.DictReader(file)]

    @property
    def aggregated(self) -> dict[str, str]:
        with (self.folder / "figures_stats.csv").open() as file:
            return next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")


def locust(*options: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", *options]
    environment = os.environ | {"FOODDX_API_KEY": KEY}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True
    )


def on_loopback(port: int) -> tuple[str, ...]:
    return ("--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--master-port", str(port))


RUNS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "steady": ({}, ("--shape", "steady")),
    "ramp": ({"reject_every": 10}, ("--shape", "ramp")),
    "spike": ({"reject_every": 10}, ("--shape", "spike", "--processes", "2")),
    "soak": ({}, ("--shape", "soak")),
    "failing": ({"fail_every": 10}, ("--processes", "2", "--max-failure-ratio", "0.001")),
    "forgiven": ({"fail_every": 10}, ("--max-failure-ratio", "0.5")),
    "nonsense": ({"garble_every": 10}, ("--max-failure-ratio", "0.5")),
}
PASSED = {"steady", "ramp", "spike", "soak", "forgiven"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    with contextlib.ExitStack() as services:
        made = {}
        for name, (faults, options) in RUNS.items():
            service = services.enter_context(FakeService(**faults).running())
            distributed = on_loopback(free_port()) if "--processes" in options else ()
            made[name] = Run(service, tmp_path_factory.mktemp(name), (*options, *distributed))
        try:
            for run in made.values():
                run.start()
            for run in made.values():
                run.end()
            yield made
        finally:
            for run in made.values():
                run.process.kill()
                run.process.wait()


@pytest.mark.parametrize("name", RUNS)
def test_the_exit_code_says_whether_it_is_passed(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert (run.process.returncode == 0) == (name in PASSED) == ("Not passed" not in run.said), run.said
    assert "Uncaught exception" not in run.said


@pytest.mark.parametrize("name", RUNS)
def test_every_request_the_service_answered_is_in_the_report(runs: dict[str, Run], name: str) -> None:
    """Those that were under way at the end, and those of all workers, included."""
    run, photos = runs[name], {"sent": 0, "failed": 0}
    for row, (sent, failed) in run.rows.items():
        if row.startswith("photo"):
            photos["sent"] += sent
            photos["failed"] += failed
        else:
            assert (sent, failed) == (run.service.answers[row], 0)
    answers = run.service.answers
    assert photos["sent"] == answers["photo"] + answers["failed"] + answers["garbled"] > 0
    assert photos["failed"] == answers["failed"]
    assert int(run.aggregated["Request Count"]) == answers.total()


@pytest.mark.parametrize("name", Shape)
def test_users_come_as_the_shape_says_and_go_at_the_end(runs: dict[str, Run], name: str) -> None:
    history = runs[name].history
    peak, end = history.index(max(history)), len(history) - history[::-1].index(max(history))
    rising, falling = history[:peak], history[end:]
    assert max(history) == USERS
    assert (rising, falling) == (sorted(rising), sorted(falling, reverse=True))
    assert history[-1] == 0
    if name == Shape.SPIKE:
        base = 2
        assert base in rising
        assert base in falling
    elif name == Shape.RAMP:
        assert len(set(rising)) >= USERS - 2


@pytest.mark.parametrize("name", RUNS)
def test_photos_are_new_but_for_the_duplicates(runs: dict[str, Run], name: str) -> None:
    """Each worker makes its own: two that sent the same would have the second answered without scoring it."""
    photos = runs[name].service.photos
    sent = {
        tokens.group() for photo in photos if (tokens := re.search(rb"(?<=\xff\xfe\x00\x12).{16}", photo))
    }
    duplicates, _ = runs[name].rows["photo duplicate"]
    assert len(photos) - len(sent) == duplicates


@pytest.mark.parametrize("name", ["failing", "forgiven"])
def test_failures_are_told_with_their_request_ids(runs: dict[str, Run], name: str) -> None:
    found = re.findall(
        r"^failed (photo .*): 500 internal, request id (r-\d+)$", runs[name].said, re.MULTILINE
    )
    failed = runs[name].service.answers["failed"]
    assert len({request_id for _, request_id in found}) == len(found) == min(failed, 20)


def test_an_answer_that_is_no_json_is_no_success(runs: dict[str, Run]) -> None:
    run = runs["nonsense"]
    assert f"Not passed: {run.service.answers['garbled']} times a user could not go on" in run.said


def test_a_soak_is_told_its_drift(runs: dict[str, Run]) -> None:
    assert {name for name, run in runs.items() if "p95 at the end" in run.said} == {"soak"}
    assert "soak, up to 6 users, 15 s: 0 of" in runs["soak"].said


@pytest.mark.parametrize("name", RUNS)
def test_the_time_is_told_in_equal_parts(runs: dict[str, Run], name: str) -> None:
    parts = re.findall(r"^│ (\d+) … (\d+) +│ +(\d+) │", runs[name].said, re.MULTILINE)
    begins, ends, users = zip(*[map(int, part) for part in parts], strict=True)
    assert (len(parts), ends[:-1], ends[-1]) == (3, begins[1:], 15)
    assert users[0 if name == "steady" else -1] == (2 if name == "spike" else USERS)


def test_the_report_says_what_load_it_was(runs: dict[str, Run]) -> None:
    page = (runs["spike"].folder / "report.html").read_text()
    assert "locustfile.py, spike, up to 6 users, 15 s" in page
    assert '"response_time_percentile_0.99"' in page
    assert page.index("photo  0.05 MP") < page.index("photo  0.1 MP")


def test_a_worker_that_is_killed_is_missed(tmp_path: Path) -> None:
    port = free_port()
    with FakeService().running() as service, contextlib.ExitStack() as ends:
        run = Run(service, tmp_path, ("--master", "--expect-workers", "2", "-t", "6", *on_loopback(port)))
        run.start()
        ends.callback(run.process.kill)
        workers = [locust("--worker", *on_loopback(port)[4:]) for _ in range(2)]
        for worker in workers:
            ends.callback(worker.communicate)
            ends.callback(worker.kill)
        deadline = time.monotonic() + 60
        while len(service.photos) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers[0].send_signal(signal.SIGKILL)
        assert run.end() == 1, run.said
        assert "Not passed: 1 of the workers went missing" in run.said
        assert workers[1].wait(30) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "large"], "'large' is not a list"),
        (["--shape", "spike", "-u", "0"], "spike needs 1 user or more"),
        (["--shape", "wave"], "invalid choice: 'wave'"),
    ],
)
def test_what_is_no_load_is_refused(options: list[str], words: str) -> None:
    said, _ = (process := locust("--host", "http://127.0.0.1:9", *options)).communicate(timeout=60)
    assert (process.returncode, words in said) == (2, True), said


def test_a_service_that_is_not_there_fails_it_and_is_not_pestered() -> None:
    options = ("-u", "2", "-t", "3", "--sizes", "0.05=1", "--only-summary")
    said, _ = (process := locust("--host", f"http://127.0.0.1:{free_port()}", *options)).communicate(
        timeout=60
    )
    assert process.returncode == 1
    assert "Not passed: no photo was scored" in said
    [(failed, sent)] = re.findall(r"(\d+) of (\d+) failed", said)
    assert failed == sent
    assert 0 < int(sent) < 300


def test_without_a_key_there_is_nothing_to_send(tmp_path: Path) -> None:
    """Nor do the workers of a distributed run start without one, for whom their master would wait."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py"), "--headless"]
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "FOODDX_API_KEY"}
    for options in ([], ["--processes", "2", *on_loopback(free_port())]):
        done = subprocess.run(
            [*command, "--host", "http://127.0.0.1:9", *options],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, "set FOODDX_API_KEY" in done.stdout) == (2, True), done.stdout + done.stderr
