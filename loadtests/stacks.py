"""Sampled stacks of a Python process: which part of the program each belongs to, and how the parts add up."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

PARTS: Final = (
    ("PIL, OpenVINO, numpy", r"PIL/|openvino/|numpy/"),
    ("uvicorn, starlette, fastapi", r"uvicorn/|starlette/|fastapi/|httptools/|h11/|python_multipart/"),
    ("redis-py", r"redis/"),
    ("obstore", r"obstore/"),
    ("ray.serve", r"ray/serve/"),
    ("grpc", r"grpc/"),
    ("metrics", r"ray/util/metrics|ray/_private/(metrics|telemetry)|opentelemetry/|opencensus/|prometheus_"),
    ("ray core", r"ray/|_raylet"),
    ("json, pydantic", r"json/|pydantic"),
    ("pickle", r"pickle|copyreg"),
    ("logging", r"logging/"),
    ("threads", r"concurrent/futures/|threading\.py|queue\.py"),
    ("asyncio, uvloop", r"asyncio/|uvloop/|selectors\.py"),
)
"""Parts of a process by where a frame's file is; the first that fits. Our modules are parts too."""
OTHER: Final = "other"
LOOP: Final = "event loop, C code under it"
UNSEEN: Final = "threads of C libraries"
_PATTERNS: Final = [(name, re.compile(rf"(?:^|/)(?:{pattern})")) for name, pattern in PARTS]
_OWN: Final = re.compile(r"(?:^|/)((?:app|models)/[\w/]+)\.py$")
_FRAME: Final = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")
_THREAD: Final = re.compile(r"thread \((\d+)\)")


class Frame(NamedTuple):
    """A function and its file."""

    function: str
    file: str

    @property
    def part(self) -> str:
        """What it is for; ``ours: app/…`` for our own modules."""
        if own := _OWN.search(self.file):
            return f"ours: {own[1]}"
        if self.file == UNSEEN:
            return UNSEEN
        return next((name for name, pattern in _PATTERNS if pattern.search(self.file)), OTHER)


Stacks = Mapping[tuple[Frame, ...], float]
"""How much each stack weighs, the caller first: in samples, or in time."""


@dataclass(frozen=True)
class Shares:
    """The shares of a part or a function, 0 to 1: where it is the end of the stack, and anywhere in it."""

    name: str
    self_share: float
    total_share: float


def parse(lines: Iterable[str]) -> dict[int, Stacks]:
    """The samples of each thread, by its id, from py-spy's raw format with threads.

    A line is ``thread (id): name;function (file:line);function (file:line) count``; others are left out.
    """
    threads: dict[int, Counter[tuple[Frame, ...]]] = defaultdict(Counter)
    for line in lines:
        path, _, count = line.strip().rpartition(" ")
        thread = _THREAD.match(path)
        frames = [_FRAME.match(frame) for frame in path.split(";")[1:]]
        stack = tuple(Frame(frame["function"], frame["file"]) for frame in frames if frame)
        if thread and stack and count.isdigit():
            threads[int(thread[1])][stack] += int(count)
    return dict(threads)


def merge(threads: Iterable[Stacks]) -> Stacks:
    """The stacks of all threads."""
    merged: dict[tuple[Frame, ...], float] = defaultdict(float)
    for stacks in threads:
        for stack, weight in stacks.items():
            merged[stack] += weight
    return dict(merged)


def weigh(threads: Mapping[int, Stacks], times: Mapping[tuple[int, str], float]) -> Stacks:
    """Samples as CPU time: each thread's add up to what it really took.

    A sampler cannot tell well which threads run: one that is about to wait looks as if it did.

    Args:
        threads: samples of each thread, by its id.
        times: CPU time of each thread, by id and name. One that has no samples is a stack of its own.
    """
    weighed = []
    for (thread, name), time in times.items():
        seen = threads.get(thread) or {(Frame(name, UNSEEN),): 1}
        scale = time / sum(seen.values())
        weighed.append({stack: weight * scale for stack, weight in seen.items()})
    return merge(weighed)


def by_part(stacks: Stacks) -> list[Shares]:
    """Shares of the parts, the largest first."""
    return _shares(stacks, lambda stack: [*(frame.part for frame in stack[:-1]), _end(stack[-1])])


def by_function(stacks: Stacks) -> list[Shares]:
    """Shares of the functions, the largest first."""
    return _shares(stacks, lambda stack: [f"{frame.function} ({frame.file})" for frame in stack])


def _end(frame: Frame) -> str:
    # What uvloop, grpc and Ray do in C on an event loop's thread has no frame but the thread's own.
    return LOOP if frame.function == "Thread.run" else frame.part


def _shares(stacks: Stacks, names: Callable[[tuple[Frame, ...]], Sequence[str]]) -> list[Shares]:
    at_end: dict[str, float] = defaultdict(float)
    anywhere: dict[str, float] = defaultdict(float)
    for stack, weight in stacks.items():
        named = names(stack)
        at_end[named[-1]] += weight
        for name in set(named):
            anywhere[name] += weight
    everything = sum(stacks.values()) or 1.0
    shares = [Shares(name, at_end[name] / everything, anywhere[name] / everything) for name in anywhere]
    return sorted(shares, key=lambda share: (-share.self_share, -share.total_share, share.name))
