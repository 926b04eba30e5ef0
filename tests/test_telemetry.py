"""The table of metrics: well-formed, used, and taken by Ray as it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from app.telemetry import METRICS, STAGES, RayMeter

APP = Path(__file__).parents[1] / "app"


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_named_by_the_rules_of_prometheus(name):
    metric = METRICS[name]
    assert re.fullmatch(r"fooddx(_[a-z]+)+", name)
    assert (metric.kind == "counter") == name.endswith("_total")
    assert metric.help[0].isupper()
    assert not metric.help.endswith(".")
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert all(0 < low < high for low, high in pairwise(metric.buckets))


def additions() -> Iterator[tuple[str, set[str | None]]]:
    """The metric and the labels of every ``meter.add("fooddx_…", …)`` in the service."""
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="add"), args=[ast.Constant(value=str(name)), *_], keywords=labels
                ) if name.startswith("fooddx_"):
                    yield name, {label.arg for label in labels}


def test_every_metric_is_used_and_every_use_is_as_in_the_table():
    found = list(additions())
    assert {name for name, _ in found} == set(METRICS)
    for name, labels in found:
        assert labels == set(METRICS[name].labels), name


def test_stages_are_those_of_the_server_timing_header():
    assert STAGES == ("auth", "dedupe", "store", "queue", "decode", "score", "tip")


@pytest.fixture(scope="module")
def meter() -> RayMeter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Ray's own models, at its first import
        return RayMeter()


class TestRaysMeter:
    """Without a cluster Ray takes the numbers and drops them, after the same checks."""

    @pytest.mark.parametrize("name", METRICS)
    def test_takes_every_metric_with_its_labels(self, meter, name):
        meter.add(name, 2, **dict.fromkeys(METRICS[name].labels, "x"))

    @pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].labels])
    def test_misses_a_label(self, meter, name):
        with pytest.raises(ValueError, match=METRICS[name].labels[0]):
            meter.add(name)

    def test_takes_no_other_metric(self, meter):
        with pytest.raises(KeyError):
            meter.add("fooddx_surprise_total")


def test_the_pure_rooms_import_no_ray():
    """Also not by way of telemetry, whose meter is Ray's."""
    rooms = "app.telemetry, app.pipeline, app.records, app.judge, app.stores.results, app.stores.images"
    program = f"import sys, {rooms}; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
