"""The load test: many users who photograph meals, look into their diary, and sometimes send the wrong file.

    locust -f loadtests/locustfile.py --headless -u 32 -r 8 -t 60s --host http://127.0.0.1:8000

Users wait for their answer and then send the next photo at once (closed loop): ``-u`` is the most requests in
flight, ``--shape`` says how many there are when. With ``--processes``, or ``--master`` and ``--worker``, the
master has the report. Exit code 1: too many failures, no photo scored, or a worker lost.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import sys
import uuid
from collections import Counter, deque
from typing import Any, ClassVar

import gevent
import locust.runners
import locust.stats
import psutil
from locust import FastHttpUser, LoadTestShape, events
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from rich.console import Console
from rich.markup import escape

from loadtests import outcome, timeline
from loadtests.mix import DUPLICATES, PROFILES, SIZES, BadFile, Mix, bad_files, multipart, parse_sizes
from loadtests.outcome import PHOTO, REJECTED
from loadtests.photos import make_photo
from loadtests.shapes import DURATION_S, Plan, Shape
from loadtests.target import NoKeyError, api_key, problem_code, retry_after_s
from loadtests.timeline import Totals

WITH_PROFILE = 0.2
FAILURES_SHOWN = 20
USERS, RATE = 32, 8
STOP_TIMEOUT_S = 10
"""How long who is to leave may wait for an answer, so that what was sent counts and nobody hangs up."""
PAUSE_S = 0.1
CHART_POINTS = 600
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
NOTHING = Totals(0.0, 0, 0, 0, 0, Counter())
photo_of = functools.cache(make_photo)


class Meals:
    """What all users of this process share: the photos, the key, and the failures to report."""

    mix: Mix
    bad: itertools.cycle[BadFile]
    authorization: str
    failures: ClassVar[deque[str]] = deque(maxlen=FAILURES_SHOWN)

    @classmethod
    def prepare(cls, options: Any) -> None:
        """Make the photos: in every process that has users, and before the first of them starts."""
        cls.authorization = f"Bearer {api_key()}"
        # Locust sorts rows by their names: 2 MP is to stand before 12.
        photos = {
            dataclasses.replace(photo_of(size), label=f"{' ' * (size < 10)}{size:g} MP"): weight
            for size, weight in parse_sizes(options.sizes).items()
        }
        cls.mix = Mix(photos, options.duplicates)
        cls.bad = itertools.cycle(bad_files(next(iter(photos))))


class Course(LoadTestShape):  # type: ignore[misc]  # locust is untyped here
    """The shape that ``--shape`` names, as high, steep and long as ``-u``, ``-r`` and ``-t`` say."""

    use_common_options = True
    moments: ClassVar[list[Totals]] = [NOTHING]
    users: ClassVar[int] = 0
    """As many as were asked for last, before they were sent home."""

    def tick(self) -> tuple[int, int] | None:
        """How many users there are to be, and how many may come or go per second; None: Locust stops.

        Locust asks every second, less often while a master waits for its workers.
        """
        seconds, plan = self.get_run_time(), planned(self.runner.environment.parsed_options)
        users = plan.users_at(seconds)
        if users is None:
            # Stopping drops what is under way, and what workers did not report yet. So all users go first.
            return (0, 100) if self.runner.user_count else None
        seen, slices = len(self.moments), timeline.slice_count(plan.duration_s)
        if seen < slices and seconds + 0.5 >= seen * plan.duration_s / slices:
            self.moments.append(outcome.totals(self.runner.stats.entries.values(), Course.users, seconds))
        Course.users = users
        return users, plan.change


def planned(options: Any) -> Plan:
    """The load that the options ask for.

    Raises:
        ValueError: there can be none like it.
    """
    shape = Shape(options.shape)
    return Plan(shape, options.num_users, options.spawn_rate, options.run_time or DURATION_S[shape])


def send_photo(user: Any) -> None:
    """Score a photo, one in five with a profile."""
    shot = next(Meals.mix)
    body, media_type = shot.jpeg, "image/jpeg"
    if random.random() < WITH_PROFILE:  # noqa: S311 - not a secret
        body, media_type = multipart(shot.jpeg, {"user": user.name, **random.choice(PROFILES)})  # noqa: S311
    # A retry after a 429 carries the key again: whatever the service already did is not done twice.
    headers = {"Content-Type": media_type, "Idempotency-Key": str(uuid.uuid4())}
    result = user.call("POST", "/v1/scores", PHOTO + shot.label, 200, data=body, headers=headers)
    if result is not None:
        user.scored.append(result["id"])


def send_bad_file(user: Any) -> None:
    """Send what is no photo: the right refusal is the success."""
    bad = next(Meals.bad)
    headers = {"Content-Type": "image/jpeg"}
    user.call(
        "POST",
        "/v1/scores",
        f"bad file: {bad.label}",
        bad.status,
        bad.code,
        data=bad.content,
        headers=headers,
    )


def read_diary(user: Any) -> None:
    """Read the newest page of the user's diary."""
    user.call("GET", f"/v1/scores?user={user.name}", "diary", 200)


def delete_result(user: Any) -> None:
    """Delete a photo this user has sent, if there is one left."""
    if user.scored:
        user.call("DELETE", f"/v1/scores/{user.scored.popleft()}", "delete", 204)


class Eater(FastHttpUser):  # type: ignore[misc]  # locust is untyped here
    """One person with a phone."""

    tasks = {send_photo: 80, read_diary: 12, send_bad_file: 4, delete_result: 4}  # noqa: RUF012 - Locust's interface
    network_timeout = connection_timeout = 10.0

    def on_start(self) -> None:
        """A user of their own, so that diaries stay apart."""
        self.name = f"load-{uuid.uuid4()}"
        self.scored: deque[str] = deque(maxlen=100)

    def call(
        self,
        method: str,
        path: str,
        label: str,
        status: int,
        code: str = "",
        *,
        headers: Any = None,
        data: Any = None,
    ) -> Any:
        """One request, repeated for as long as the service says 429.

        Each 429 is counted under its own label, never as a failure, and without a time: a refusal is quick,
        and an overload would look fast. Returns the JSON answer if it had ``status`` and, where given, the
        problem ``code``; otherwise None.
        """
        headers = {"Authorization": Meals.authorization, **(headers or {})}
        while True:
            with self.client.request(
                method, path, name=label, data=data, headers=headers, catch_response=True
            ) as response:
                answered = response.headers or {}
                if response.status_code == 429:
                    response.request_meta |= {"name": REJECTED, "response_time": None}
                    response.success()
                elif response.status_code == status and (not code or problem_code(response.content) == code):
                    response.success()
                    return response.json() if response.content else {}
                else:
                    why = problem_code(response.content) or response.error or "unexpected answer"
                    what = f"{response.status_code} {why}"
                    response.failure(what)
                    Meals.failures.append(
                        f"{label}: {what}, request id {answered.get('x-request-id', 'none')}"
                    )
                    if not response.status_code:  # who is not there is not asked a thousand times a second
                        gevent.sleep(PAUSE_S)
                    return None
            gevent.sleep(retry_after_s(answered.get("retry-after")))


def add_options(parser: Any) -> None:
    """What can be set on Locust's command line besides its own options, and what those are by default."""
    parser.set_defaults(num_users=USERS, spawn_rate=RATE, stop_timeout=STOP_TIMEOUT_S)
    group = parser.add_argument_group("FoodDX")
    durations = ", ".join(f"{shape} {seconds} s" for shape, seconds in DURATION_S.items())
    group.add_argument(
        "--shape",
        choices=[str(shape) for shape in Shape],
        default=str(Shape.STEADY),
        help=f"of the load over time (default %(default)s); without -t: {durations}",
    )
    group.add_argument("--sizes", default=SIZES, help=f"megapixels=weight, comma-separated (default {SIZES})")
    group.add_argument("--duplicates", type=float, default=DUPLICATES, help="share of photos sent before")
    group.add_argument("--max-failure-ratio", type=float, default=0.001, help="exit with 1 above this share")


def configure(environment: Any, **_: Any) -> None:
    """Stop where the options, or the lack of a key, leave nothing to do."""
    options = environment.parsed_options
    try:
        parse_sizes(options.sizes)
        locust.stats.HISTORY_STATS_INTERVAL_SEC = max(1.0, planned(options).duration_s / CHART_POINTS)
        if options.processes or not isinstance(environment.runner, MasterRunner):
            api_key()
    except (ValueError, NoKeyError) as error:
        console.print(f"[red]{escape(str(error))}")
        for worker in psutil.Process().children():  # of --processes: they would wait for their master
            worker.terminate()
        sys.exit(2)


def start(environment: Any, **_: Any) -> None:
    """Get ready, in every process; what that takes is no part of the test."""
    configure(environment)
    runner, options = environment.runner, environment.parsed_options
    Meals.failures.clear()
    Course.moments[:] = [NOTHING]
    if not isinstance(runner, MasterRunner):
        Meals.prepare(options)
        environment.stats.clear_all()
    if isinstance(runner, LocalRunner):
        environment.shape_class.reset_time()


def send_failures(data: dict[str, Any], **_: Any) -> None:
    """Tell the master which requests failed, for its report."""
    data["fooddx_failures"] = list(Meals.failures)
    Meals.failures.clear()


def receive_failures(data: dict[str, Any], **_: Any) -> None:
    """Keep the last ones of all workers."""
    Meals.failures.extend(data.get("fooddx_failures", ()))


def describe(environment: Any, **_: Any) -> None:
    """Have the HTML report say what load it was, and of whom it was made before all were sent home."""
    if not environment.web_ui:  # which names files by it
        environment.locustfile = f"{environment.locustfile}, {planned(environment.parsed_options)}"
    environment.runner.final_user_classes_count = {Eater.__name__: Course.users}


def report(environment: Any, **_: Any) -> None:
    """At the end: the exit code, and below Locust's own tables the request ids of failures and ours."""
    runner, stats, options = environment.runner, environment.stats, environment.parsed_options
    if isinstance(runner, WorkerRunner):
        return  # the master has everyone's numbers
    plan, rows = planned(options), list(stats.entries.values())
    began = max(stats.total.start_time, min(stats.total.num_reqs_per_sec, default=0))
    seconds = max((stats.total.last_request_timestamp or 0) - began, 1e-9)
    end = outcome.totals(rows, Course.users, min(environment.shape_class.get_run_time(), plan.duration_s))
    sent = outcome.requests_sent(rows)
    over_time = timeline.slices([*Course.moments, end])
    crashes = sum(found["count"] for found in runner.exceptions.values())
    lost = len(runner.clients.missing) if isinstance(runner, MasterRunner) else 0
    faults = list(outcome.faults(end, sent, options.max_failure_ratio, crashes, lost))
    environment.process_exit_code = 1 if faults else 0

    def show(**_: Any) -> None:
        for failure in Meals.failures:
            console.print(f"[red]failed[/] {escape(failure)}")
        console.print(outcome.table(rows, seconds), timeline.table(over_time))
        if plan.shape == Shape.SOAK and (drift := timeline.drift(over_time)):
            console.print(f"p95 at the end: {drift:.2f} times that at the beginning")
        console.print(f"{plan}: {end.failed} of {sent} failed; {end.photos / seconds:.1f} images/s")
        for fault in faults:
            console.print(f"[red]Not passed:[/] {fault}")

    events.quit.add_listener(show)


locust.stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
locust.runners.WORKER_REPORT_INTERVAL = 1.0  # seconds; what comes late is counted where it does not belong
events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(configure)
events.test_start.add_listener(start)
events.test_stop.add_listener(describe)
events.report_to_master.add_listener(send_failures)
events.worker_report.add_listener(receive_failures)
events.quitting.add_listener(report)
