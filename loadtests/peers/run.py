"""FoodDX and its peers at the same job under the same load: ``make peers``.

    python -m loadtests.peers.run --rounds 3 --seconds 10 --only fooddx mosec --level full
    python -m loadtests.peers.run --tune --only mosec

Each round measures every server once, in an order that turns by one from round to round, with one server up
at a time; so what the machine does to one minute, it does to all of them. Every server must answer the same
photos like the one before it, or nothing is measured. All processes, the sending one included, are as nice as
Ray's workers. FoodDX has no level ``compute``: there it does the full job, and stands in the table as a
yardstick.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from PIL import Image
from rich.console import Console
from rich.markup import escape
from skimage import data as pictures

from loadtests import latency, processes, service
from loadtests.peers.comparison import Run, differences, rows, table
from loadtests.peers.environments import BUILD, python_of, requirements
from loadtests.peers.job import ROUTE, Level, Options
from loadtests.peers.servers import FOODDX, PEERS, PeerError, Server, constants, started
from loadtests.photos import QUALITY, TOKEN_BYTES, Photo, make_photo
from loadtests.sending import Senders, Target, fresh
from models.build import build_apart
from models.manifest import load_manifest
from models.registry import DEFAULT

LEVELS: Final[tuple[Level, ...]] = ("compute", "full")
_CPUINFO: Final = Path("/proc/cpuinfo")
CLIENTS: Final = (1, 32)
MEGAPIXELS: Final = 0.8
TOKEN: Final = b"0" * TOKEN_BYTES
"""In the photos whose answers are compared: all servers get the same bytes."""


class Bench:
    """One run of the command: what it sends, and what it has measured."""

    def __init__(self, senders: Senders, console: Console, seconds: float, warmup: float) -> None:
        self.runs: list[Run] = []
        self._senders = senders
        self._console = console
        self._seconds = seconds
        self._warmup = warmup
        self._photo = make_photo(MEGAPIXELS)
        self._samples = samples()
        self._answers: dict[Level, tuple[str, list[bytes]]] = {}

    def measure(self, name: str, level: Level, turn: int, options: Options, clients: Sequence[int]) -> None:
        """Start a server, compare its answers, and measure it under each load.

        Raises:
            PeerError, StartError: it did not start, answers otherwise than the others, or is not as nice.
        """
        what = f"round {turn + 1}, {level}: {name}"
        with self._console.status(what) as status, started(name, level, options) as server:
            self._agree(server, level)
            server.check_niceness()
            self._load(server, max(clients), self._warmup)
            for number in clients:
                status.update(f"{what}, {number} clients")
                before = processes.usage(server.processes())
                measured = self._load(server, number, self._seconds)
                spent = processes.spent(before, processes.usage(server.processes()))
                cpu_ms = sum(spent.values()) * 1000 / max(measured.images, 1)
                self.runs.append(Run(name, level, turn, measured, cpu_ms, dict(options)))

    def _load(self, server: Server, clients: int, seconds: float) -> latency.Measured:
        target = Target(server.url, server.key)
        photos = fresh(server.photo(self._photo))
        return latency.summarise(
            clients, latency.closed_loop(self._senders, target, photos, clients, seconds)
        )

    def _agree(self, server: Server, level: Level) -> None:
        """Raise PeerError unless the server answers the samples like the first one that was asked."""
        if server.name == FOODDX:
            level = "full"
        answers = []
        headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "image/jpeg"}
        with httpx.Client(trust_env=False, timeout=30, headers=headers) as client:
            for sample in self._samples:
                body = server.photo(sample).with_token(TOKEN)
                answer = client.post(f"{server.url}{ROUTE}", content=body)
                if answer.status_code != httpx.codes.OK:
                    raise PeerError(f"{server.name} answers {answer.status_code}: {answer.text[:200]}")
                answers.append(answer.content)
        first, expected = self._answers.setdefault(level, (server.name, answers))
        for sample, one, other in zip(self._samples, expected, answers, strict=True):
            if found := differences(one, other):
                raise PeerError(f"{first} and {server.name} differ on {sample.label}: {'; '.join(found)}")


def samples() -> list[Photo]:
    """Photos to compare answers to: a meal in two sizes, a person, a cat, and an upright one."""
    others = {"astronaut": pictures.astronaut(), "cat": pictures.chelsea(), "rocket": pictures.rocket()}
    return [
        make_photo(MEGAPIXELS),
        make_photo(0.2),
        *(_photo(label, array) for label, array in others.items()),
    ]


def _photo(label: str, array: Any) -> Photo:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=QUALITY, comment=TOKEN)
    head, tail = file.getvalue().split(TOKEN)
    return Photo(label, head, tail)


def turned(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: each server is first, last and next to each other one in turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    models = [
        line.partition(":")[2].strip() for line in _CPUINFO.read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fooddx": version("fooddx"),
        "peers": {name: requirements(name).read_text().splitlines()[0] for name in PEERS},
    }


def compare(
    bench: Bench, names: Sequence[str], levels: Sequence[Level], rounds: int, console: Console
) -> None:
    """Measure every server in every round, and print a table a level."""
    best = {name: constants(name)[0] for name in names if name != FOODDX}
    for turn in range(rounds):
        for level in levels:
            for name in turned(names, turn):
                bench.measure(name, level, turn, best[name][level] if name in best else {}, CLIENTS)
    found = rows(bench.runs, FOODDX)
    for level in levels:
        work = (
            "decode and inference alone; FoodDX does the full job" if level == "compute" else "the full job"
        )
        title = f"{work}: {MEGAPIXELS:g} MP, {rounds} rounds"
        console.print(table([row for row in found if row.level == level], title))


def tune(bench: Bench, names: Sequence[str], levels: Sequence[Level], rounds: int, console: Console) -> None:
    """Measure every peer with each of the options it names, and print which did most."""
    for name in (name for name in names if name != FOODDX):
        tried = constants(name)[1]
        for level in levels:
            rates: dict[str, list[float]] = {}
            for turn in range(rounds):
                for options in tried[level]:
                    bench.measure(name, level, turn, options, CLIENTS[-1:])
                    rate = bench.runs[-1].measured.images_per_s
                    rates.setdefault(json.dumps(options), []).append(rate)
                    console.print(f"{name} {level} round {turn + 1}: {rate:.1f}/s with {json.dumps(options)}")
            best = max(rates, key=lambda options: median(rates[options]))
            console.print(f"[bold]{name} {level}: {median(rates[best]):.1f}/s with {best}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a server cannot be compared or did not answer every request."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers.run", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long each number of clients is measured"
    )
    parser.add_argument(
        "--warmup", type=float, default=3.0, help="seconds before that, with the most clients"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(FOODDX, *PEERS), default=(FOODDX, *PEERS), metavar="NAME"
    )
    parser.add_argument("--level", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--tune", action="store_true", help="find each peer's best options instead")
    parser.add_argument("--json", type=Path, default=BUILD / "peers.json", metavar="FILE")
    options = parser.parse_args(arguments)
    console = Console()
    # Inherited by every server. Ray's workers add theirs to it, and would then be nicer than all others.
    processes.be_as_nice()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
    for name in options.only:
        if name != FOODDX:
            with console.status(f"installing {name}"):
                python_of(name)
    build_apart([load_manifest(DEFAULT)], service.MODELS)
    began = datetime.now(UTC)
    try:
        with Senders(1) as senders:
            bench = Bench(senders, console, options.seconds, options.warmup)
            work = tune if options.tune else compare
            work(bench, options.only, options.level, options.rounds, console)
    except (PeerError, service.StartError) as error:
        console.print(f"[red]{escape(str(error))}")
        return 1
    figures = {
        "at": began.isoformat(timespec="seconds"), "machine": machine(), "seconds": options.seconds,
        "megapixels": MEGAPIXELS, "niceness": processes.NICENESS,
        "rows": [asdict(row) for row in rows(bench.runs, FOODDX)],
        "runs": [asdict(run) for run in bench.runs],
    }  # fmt: skip
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(run.measured.errors for run in bench.runs) else 0


if __name__ == "__main__":
    raise SystemExit(main())
