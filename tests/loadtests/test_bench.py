"""The benchmark, all of it and short, against the running service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests import bench
from tests.conftest import Running


@pytest.mark.server
def test_everything_is_measured_and_written(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOODDX_API_KEY", service.api_key)
    monkeypatch.setattr(bench, "SETTLE_S", 0.0)
    file = tmp_path / "bench.json"
    short = ["--rounds", "1", "--seconds", "0.5", "--open-seconds", "1"]
    few = ["--sizes", "0.2", "--clients", "1", "--loads", "0.3"]
    assert bench.main(["--url", service.url, *short, *few, "--json", str(file)]) in {0, 1}
    figures = json.loads(file.read_text())
    assert [(case["clients"], case["hits"]) for case in figures["closed"]] == [(1, False), (32, True)]
    assert figures["capacity"] > 0
    for case in figures["closed"]:
        (measured,) = case["rounds"]
        assert measured["measured"]["images"] > 0
        assert {"Ingress", "Preprocessor", "Scorer", "store"} <= measured["cpu_ms"].keys()
    assert figures["floor"][0]["rounds"][0]["floor"]["images_per_s"] > 0
    assert figures["open"][0]["arrivals"] > 0
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("parts", ["floor,closd", ""])
def test_an_unknown_part_is_refused(parts: str) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", parts])


def test_without_a_service_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FOODDX_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--url", "http://127.0.0.1:1", "--sizes", "0.01"]) == 2
