"""The processes under a running service, by what they are."""

from __future__ import annotations

import psutil

from tests.conftest import Running


def under(service: Running) -> list[psutil.Process]:
    """Every process below ``fooddx serve``."""
    return psutil.Process(service.process.pid).children(recursive=True)


def replica(service: Running, deployment: str) -> psutil.Process:
    """The (only) replica of a deployment."""
    return named(service, f"ray::ServeReplica:fooddx:{deployment}")


def named(service: Running, title: str) -> psutil.Process:
    """The process whose title begins with ``title``."""
    for process in under(service):
        if " ".join(process.cmdline()).startswith(title) or process.name() == title:
            return process
    raise LookupError(title)
