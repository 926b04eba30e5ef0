"""Where each process of the service spends its time: ``make profile``.

    python -m loadtests.profiling --clients 32 --megapixels 0.8 --seconds 10

Starts a service of its own (``--url``: one that runs, on this machine), keeps a closed loop of clients on it,
and looks at every replica. First without disturbing it: CPU time of each thread, from /proc. Then with
py-spy, three times: stacks of threads that run, stacks of the thread that holds the GIL, and a flame graph
(build/profile/<deployment>.svg). Each thread's samples are scaled to the CPU time it took, so that the parts
of a process add up to what an image costs there. py-spy sees Python's frames: what a C library does counts
for the function that called it; threads that a C library started, OpenVINO's say, are one part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from loadtests import machine, stacks
from loadtests.latency import closed_loop
from loadtests.photos import make_photo
from loadtests.processes import HAPROXY, RAY, STORE, role, tree
from loadtests.sending import Senders, Target, fresh, repeated
from loadtests.service import BUILD, Service, StartError, running
from loadtests.target import NoKeyError

FOLDER: Final = BUILD / "profile"
RATE: Final = 100
"""Samples per second."""
LEAST: Final = 0.005
"""Parts and functions below this share are left out."""


PY_SPY: Final = Path(sys.executable).with_name("py-spy")

Threads = Mapping[tuple[int, str], float]
Say = Callable[[str], None]


class SpyError(RuntimeError):
    """py-spy could not look at a process; the text says what to do."""


def replicas(service: Service) -> dict[str, psutil.Process]:
    """One replica of each deployment.

    Raises:
        SpyError: no replica runs on this machine.
    """
    found = {}
    for process in tree(service.root) if service.root else []:
        with contextlib.suppress(psutil.Error):
            what = role(" ".join(process.cmdline()), process.name())
            if what not in {HAPROXY, STORE, RAY}:
                found[what] = process
    if not found:
        raise SpyError("no replica runs on this machine: run it where the service is")
    return dict(sorted(found.items()))


def record(
    found: Mapping[str, psutil.Process], seconds: float, suffix: str, *options: str
) -> dict[str, Path]:
    """Have py-spy look at all replicas at once; the files it wrote.

    Raises:
        SpyError: it is not installed, or may not attach.
    """
    files = {what: FOLDER / f"{what}{suffix}" for what in found}
    # Not blocking: a stop wakes every thread of the process, which then look as if they had run.
    common = ["--nonblocking", "--duration", str(round(seconds)), "--rate", str(RATE), *options]
    try:
        running_spies = [
            subprocess.Popen(  # noqa: S603 - our own words
                [str(PY_SPY), "record", "--pid", str(found[what].pid), "--output", str(file), *common],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for what, file in files.items()
        ]
    except FileNotFoundError:
        raise SpyError("py-spy is not installed: pip install py-spy") from None
    ends = [(spy.communicate()[1], spy.returncode) for spy in running_spies]
    if failed := next((words for words, status in ends if status), None):
        raise SpyError(
            f"py-spy: {failed.strip()}\nIt needs the right to trace: run as root, or add the capability "
            "SYS_PTRACE to the container, or set kernel.yama.ptrace_scope to 0"
        )
    return files


def thread_names(process: psutil.Process) -> dict[int, str]:
    """What Python calls its threads, by their ids; numbers in names are left out."""
    dump = subprocess.run(  # noqa: S603 - our own words
        [str(PY_SPY), "dump", "--nonblocking", "--json", "--pid", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    threads = json.loads(dump.stdout) if dump.returncode == 0 else []
    return {thread["os_thread_id"]: _plain(thread["thread_name"] or "main") for thread in threads}


def thread_seconds(process: psutil.Process, names: Mapping[int, str]) -> Threads:
    """CPU seconds of each thread, by its id and its name: Python's, else the one that it gave itself."""
    found = {}
    for thread in process.threads():
        with contextlib.suppress(OSError):
            own = Path(f"/proc/{process.pid}/task/{thread.id}/comm").read_text().strip()
            # One that did not name itself has the process's title.
            name = names.get(thread.id) or ("C: unnamed" if own.startswith("ray::") else f"C: {_plain(own)}")
            found[thread.id, name] = thread.user_time + thread.system_time
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]?\d[\d.]*", "", name)


def parts_table(what: str, cpu: stacks.Stacks, gil: stacks.Stacks, seconds: float) -> Table:
    """Parts of a process: milliseconds of CPU per image, and shares of the time the GIL was held."""
    cpu_ms, held = sum(cpu.values()), sum(gil.values()) / (RATE * seconds)
    table = Table(title=f"{what}: {cpu_ms:.2f} ms of CPU per image; GIL held {held:.0%} of the time")
    table.add_column("part")
    for name in ("self ms", "self", "total", "GIL"):
        table.add_column(name, justify="right")
    holders = {share.name: share.self_share for share in stacks.by_part(gil)}
    for share in stacks.by_part(cpu):
        if max(share.self_share, share.total_share) >= LEAST:
            table.add_row(
                share.name, f"{share.self_share * cpu_ms:.2f}", f"{share.self_share:.1%}",
                f"{share.total_share:.1%}", f"{holders.get(share.name, 0.0):.1%}",
            )  # fmt: skip
    return table


def functions_table(what: str, cpu: stacks.Stacks, top: int) -> Table:
    """The functions where most CPU time is spent, and those that most of it is spent under."""
    table = Table(title=f"{what}: functions")
    table.add_column("most at the end of the stack")
    table.add_column("self", justify="right")
    table.add_column("most anywhere in it")
    table.add_column("total", justify="right")
    ends = stacks.by_function(cpu)
    through = sorted(ends, key=lambda share: -share.total_share)
    for end, passed in zip(ends[:top], through[:top], strict=True):
        table.add_row(end.name, f"{end.self_share:.1%}", passed.name, f"{passed.total_share:.1%}")
    return table


def threads_table(spent: Mapping[str, Threads]) -> Table:
    """CPU milliseconds per image of the threads of each process, by name."""
    table = Table(title="threads, ms of CPU per image")
    for name in ("process", "thread"):
        table.add_column(name)
    table.add_column("ms", justify="right")
    for what, threads in spent.items():
        by_name: dict[str, float] = defaultdict(float)
        for (_, name), cpu_ms in threads.items():
            by_name[name] += cpu_ms
        for name, cpu_ms in sorted(by_name.items(), key=lambda pair: -pair[1]):
            if cpu_ms >= 0.01:
                table.add_row(what, name, f"{cpu_ms:.2f}")
        table.add_section()
    return table


def _profile(
    service: Service, senders: Senders, options: argparse.Namespace, console: Console, say: Say
) -> None:
    found, photo = replicas(service), make_photo(options.megapixels)
    source = repeated(photo.unique()) if options.hits else fresh(photo)
    load = partial(closed_loop, senders, Target(service.url, service.key), source, options.clients)
    say("warming up")
    load(2.0)
    machine.settle(10.0)

    say("CPU of the threads")
    names = {what: thread_names(process) for what, process in found.items()}
    before = {what: thread_seconds(process, names[what]) for what, process in found.items()}
    sample = load(options.seconds)
    after = {what: thread_seconds(process, names[what]) for what, process in found.items()}
    spent = {what: _per_image(before[what], after[what], sample.images) for what in found}
    service.forget_photos()

    raw = ("--format", "raw", "--threads")
    passes = {".raw": raw, ".gil.raw": (*raw, "--gil"), ".svg": ("--function",)}
    files = {}
    for suffix, arguments in passes.items():
        say(f"py-spy {' '.join(arguments)}")
        # A little longer than the look, so that it never sees the load end.
        background = threading.Thread(target=load, args=(options.seconds + 2.0,))
        background.start()
        files[suffix] = record(found, options.seconds, suffix, *arguments)
        background.join()
        service.forget_photos()

    console.print(machine.words())
    rate = sample.images / sample.wall_s
    console.print(f"{photo.label}, {options.clients} clients, {rate:.1f} images/s before py-spy")
    for what in found:
        seen, holders = (
            stacks.parse(files[suffix][what].read_text().splitlines()) for suffix in (".raw", ".gil.raw")
        )
        cpu = stacks.weigh(seen, spent[what])
        console.print(parts_table(what, cpu, stacks.merge(holders.values()), options.seconds))
        console.print(functions_table(what, cpu, options.top))
    console.print(threads_table(spent))


def _per_image(before: Threads, after: Threads, images: int) -> Threads:
    return {
        thread: (seconds - before.get(thread, 0.0)) * 1000 / max(images, 1)
        for thread, seconds in after.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where py-spy cannot look, 2 without a service."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with (
            console.status("starting the service") as status,
            running(options.url, FOLDER) as service,
            Senders(1) as senders,
        ):
            _profile(service, senders, options, console, status.update)
    except SpyError as error:
        console.print(f"[red]{error}")
        return 1
    except (NoKeyError, StartError) as error:
        console.print(f"[red]{error}")
        return 2
    console.print(f"Flame graphs: {FOLDER}/*.svg")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.profiling", description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a service that runs on this machine (default: start one)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--megapixels", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each look")
    parser.add_argument("--hits", action="store_true", help="send the same photo again and again")
    parser.add_argument("--top", type=int, default=15, help="functions shown of each process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
