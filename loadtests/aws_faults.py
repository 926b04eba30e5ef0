"""What clients see while S3, Redis, KMS or SQS fails, and that all of it recovers by itself.

    python -m loadtests.aws_faults --json build/aws-faults.json

Starts an emulated AWS account, a Valkey and ``fooddx serve``, all on loopback, with a proxy before each store
that can be made to fail, and two tenants: one in the shared bucket, one with a bucket and sealed credentials
of its own. During each fault both make every call of the contract, and a photo arrives by the queue. Then the
fault ends, and what was not answered well is asked again until it is; but for photos sent "once".

At the end every result and photo that was acknowledged is asked for again: ``lost`` counts those that are
gone. The buckets are searched for photos without a result: those that the service has noted, its sweep
deletes; ``forgotten`` counts the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from app.stores.embedded import EmbeddedStore, EmbeddedStoreError
from app.stores.s3 import S3Limits
from loadtests.aws import SHARED, Cloud, emulated_cloud
from loadtests.aws_stage import BUDGET_S, TENANTS, Leftovers, Stage, staged
from loadtests.calls import Answer, Call, Client, Promise, Props, calls, promise, wrong
from loadtests.emulators import EmulatorError
from loadtests.photos import Photo, make_photo
from loadtests.proxy import Mode

ALLOWED_MS: Final = (BUDGET_S + 0.3) * 1000
"""An answer that takes longer is late."""
_QUEUE_WAIT_S: Final = 3.0
_SETTLE_S: Final = 3.0
_PAUSE_S: Final = 0.1


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: of it.
        service: whose proxy fails.
        mode: what it does.
        sealed: the second tenant's credentials are sealed anew meanwhile, so that those which the service has
            opened are of no use.
    """

    name: str
    service: str
    mode: Mode
    sealed: bool = False


FAULTS: Final = (
    Fault("nothing fails", "s3", Mode.PASS),
    Fault("S3 denies", "s3", Mode.DENY),
    Fault("S3 slow (2 s)", "s3", Mode.SLOW),
    Fault("S3 away", "s3", Mode.AWAY),
    Fault("Redis away", "redis", Mode.AWAY),
    Fault("Redis hangs", "redis", Mode.HANG),
    Fault("KMS away, credentials opened before", "kms", Mode.AWAY),
    Fault("KMS away", "kms", Mode.AWAY, sealed=True),
    Fault("KMS slow (2 s)", "kms", Mode.SLOW, sealed=True),
    Fault("KMS denies", "kms", Mode.DENY, sealed=True),
    Fault("SQS away", "sqs", Mode.AWAY),
)


@dataclass(frozen=True)
class Row:
    """One call of one tenant around one fault.

    Attributes:
        fault: its name.
        tenant: who called.
        call: its name.
        answer: status and code during the fault.
        ms: how long that took.
        later: further answers on the way to a good one, each kind once.
        slowest_ms: of all its answers.
        recovered_s: from the end of the fault to the first good answer; 0 where the fault did no harm, or
            nobody asked again; None where there was no good answer.
        wrong: what was wrong with its answers, see ``wrong``.
    """

    fault: str
    tenant: str
    call: str
    answer: str
    ms: float
    later: tuple[str, ...] = ()
    slowest_ms: float = 0.0
    recovered_s: float | None = 0.0
    wrong: tuple[str, ...] = ()


@dataclass
class Outcome:
    """All that a run found out."""

    rows: list[Row] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    left: Leftovers = field(default_factory=Leftovers)

    @property
    def failed(self) -> bool:
        """Whether something is as it must never be. What else is odd is left to whoever reads it."""
        ill = any(row.recovered_s is None or row.wrong for row in self.rows)
        return bool(ill or self.lost or self.restarted or self.left.forgotten)


async def play(stage: Stage, fault: Fault, photo: Photo, outcome: Outcome) -> None:
    """One fault: before, during, after."""
    proxy = stage.proxies[fault.service]
    props = await asyncio.gather(*(Props.by(client, photo) for client in stage.clients))
    pairs = list(zip(stage.clients, props, strict=True))
    before = stage.replicas()
    await proxy.switch(fault.mode)
    await asyncio.sleep(S3Limits().ready_s)  # so long may readiness answer as before
    if fault.sealed:
        await stage.seal_anew()
    for client, prop in pairs:
        await client.send(prop.form, photo.unique(), stage.past_proxies(prop.form["url"]))
    answered = await asyncio.gather(*(_during(client, prop) for client, prop in pairs))
    await proxy.switch(Mode.PASS)
    ended = time.perf_counter()

    async def recover(client: Client, prop: Props, call: Call, first: Answer) -> Row:
        harmed = first.status not in call.well
        later = await client.until_well(call) if harmed else []
        recovered_s = time.perf_counter() - ended if harmed else 0.0
        every = [first, *later]
        if promised := promise(client.tenant, call, every[-1], prop):
            outcome.promises.append(promised)
        return Row(
            fault.name, client.tenant, call.name, first.words, first.ms,
            later=tuple(dict.fromkeys(answer.words for answer in later[:-1])),
            slowest_ms=max(answer.ms for answer in every),
            recovered_s=recovered_s if every[-1].status in call.well else None,
            wrong=tuple(dict.fromkeys(what for answer in every for what in wrong(answer, stage.secrets))),
        )  # fmt: skip

    outcome.rows += await asyncio.gather(
        *(
            recover(client, prop, call, first)
            for (client, prop), answers in zip(pairs, answered, strict=True)
            for call, first in answers
        )
    )
    gone = before.keys() - stage.replicas().keys()
    outcome.restarted += [f"{before[pid]} while {fault.name}" for pid in gone]


async def _during(client: Client, props: Props) -> list[tuple[Call, Answer]]:
    """Each call once, in turn; the queue has a moment, for nobody expects its result at once."""
    *asked, by_queue = calls(props, readiness=client.tenant == SHARED)
    answers = [(call, await client.ask(call)) for call in asked]
    deadline = time.perf_counter() + _QUEUE_WAIT_S
    answer = await client.ask(by_queue)
    while answer.status == 202 and time.perf_counter() < deadline:
        await asyncio.sleep(_PAUSE_S)
        answer = await client.ask(by_queue)
    return [*answers, (by_queue, answer)]


async def audit(stage: Stage, outcome: Outcome) -> None:
    """Whether every promise is kept, and what is left that no result is of."""
    clients = {client.tenant: client for client in stage.clients}
    broken = await asyncio.gather(*(one.broken(clients[one.tenant]) for one in outcome.promises))
    outcome.lost += [
        f"{one.tenant}, {one.call}, {one.result_id}: {what}"
        for one, what in zip(outcome.promises, broken, strict=True)
        if what
    ]
    await asyncio.sleep(_SETTLE_S)  # for what is cleaned up behind an answer
    outcome.left = await asyncio.to_thread(stage.leftovers)


def table(fault: str, rows: Sequence[Row]) -> Table:
    """What each call was answered during one fault, and when it was well again."""
    result = Table(title=fault)
    result.add_column("call")
    for tenant in TENANTS:
        result.add_column(tenant, overflow="fold")
        result.add_column("ms", justify="right")
        result.add_column("well after", justify="right")
    found = {(row.call, row.tenant): row for row in rows if row.fault == fault}
    for call in dict.fromkeys(call for call, _ in found):
        cells = (_cells(found.get((call, tenant))) for tenant in TENANTS)
        result.add_row(call, *(cell for three in cells for cell in three))
    return result


def _cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    words = [
        row.answer,
        *(f"then {answer}" for answer in row.later),
        *(f"[red]{bad}[/]" for bad in row.wrong),
    ]
    late = f" ([yellow]{row.slowest_ms:.0f}[/])" if row.slowest_ms > ALLOWED_MS else ""
    return "\n".join(words), f"{row.ms:.0f}{late}", "" if row.recovered_s == 0 else _after(row.recovered_s)


def _after(recovered_s: float | None) -> str:
    return "never" if recovered_s is None else f"{recovered_s:.1f} s"


def summary(rows: Sequence[Row]) -> str:
    """A table in Markdown, a line per fault: what is not answered as always, and until when."""
    lines = [
        "| while | is not answered as always | slowest answer | all well after |",
        "| --- | --- | --- | --- |",
    ]
    for fault in dict.fromkeys(row.fault for row in rows):
        during = [row for row in rows if row.fault == fault]
        harmed = [row for row in during if row.recovered_s != 0]
        answers: dict[str, list[Row]] = defaultdict(list)
        for row in harmed:
            answers[row.answer].append(row)
        what = "; ".join(f"{_whose(given, during)}: `{answer}`" for answer, given in answers.items())
        ends = [row.recovered_s for row in harmed if row.recovered_s is not None]
        after = _after(max(ends, default=0.0)) if len(ends) == len(harmed) else _after(None)
        slowest = max(row.slowest_ms for row in during)
        lines.append(f"| {fault} | {what or 'nothing'} | {slowest:.0f} ms | {after if harmed else '–'} |")
    return "\n".join(lines)


def _whose(rows: Sequence[Row], during: Sequence[Row]) -> str:
    """Calls by name, and the tenant's where it is not every one's who made it."""
    callers, every = _callers(rows), _callers(during)
    groups: dict[str, list[str]] = defaultdict(list)
    for call, tenants in callers.items():
        groups["" if tenants == every[call] else " and ".join(sorted(tenants))].append(call)
    return ", ".join(
        f"{', '.join(names)}{f' ({tenants})' if tenants else ''}" for tenants, names in groups.items()
    )


def _callers(rows: Sequence[Row]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.call].add(row.tenant)
    return found


def verdict(outcome: Outcome) -> str:
    """What counts in the end, a line each."""
    counts = {
        "acknowledged": len(outcome.promises),
        "lost": len(outcome.lost),
        "photos without a result, for the sweep": len(outcome.left.to_sweep),
        "photos without a result, forgotten": len(outcome.left.forgotten),
        "uploads left for the bucket's lifecycle": len(outcome.left.uploads),
        "dead letters": len(outcome.left.dead_letters),
        "replicas restarted": len(outcome.restarted),
        "calls that were not well again": sum(row.recovered_s is None for row in outcome.rows),
        "calls with a wrong answer": sum(bool(row.wrong) for row in outcome.rows),
        f"calls with an answer later than {ALLOWED_MS:.0f} ms": sum(
            row.slowest_ms > ALLOWED_MS for row in outcome.rows
        ),
    }
    return "\n".join(f"{count:5} {what}" for what, count in counts.items())


async def run(
    cloud: Cloud, store: EmbeddedStore, photo: Photo, faults: Sequence[Fault], console: Console
) -> Outcome:
    """All faults, one after the other; each one's table as soon as it is known."""
    outcome = Outcome()
    async with contextlib.AsyncExitStack() as stack:
        with console.status("FoodDX, behind proxies"):
            stage = await stack.enter_async_context(staged(cloud, store))
        for fault in faults:
            with console.status(fault.name):
                await play(stage, fault, photo, outcome)
            console.print(table(fault.name, outcome.rows))
        with console.status("What was acknowledged is asked for again"):
            await audit(stage, outcome)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where something is as it must never be, 2 where it could not be tried."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.aws_faults", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", metavar="WORDS", default="", help="faults whose names begin so, as 'S3'")
    parser.add_argument("--megapixels", type=float, default=0.8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here as well")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if fault.name.startswith(options.only)]
    if not faults:
        parser.error(f"no fault's name begins with {options.only!r}: {', '.join(f.name for f in FAULTS)}")
    console = Console(highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="fooddx-faults-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            with console.status("An emulated AWS account, and a Valkey"):
                cloud = stack.enter_context(emulated_cloud(folder))
                store = stack.enter_context(EmbeddedStore(folder / "valkey"))
            outcome = asyncio.run(run(cloud, store, make_photo(options.megapixels), faults, console))
    except (EmulatorError, EmbeddedStoreError, TimeoutError) as error:
        console.print(f"[red]{error}")
        return 2
    console.print(verdict(outcome))
    for what in (*outcome.lost, *outcome.restarted, *outcome.left.forgotten, *outcome.left.dead_letters):
        console.print(f"[red]{what}")
    console.print(summary(outcome.rows), soft_wrap=True)
    if options.json:
        figures = {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "megapixels": options.megapixels, "budget_s": BUDGET_S, **asdict(outcome),
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
