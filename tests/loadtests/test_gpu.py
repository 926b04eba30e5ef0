"""The GPU tool on CPU tensors: what it counts, what it writes, what it says when something is missing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.engines import EngineError
from app.imaging.guards import ImageLimits
from app.imaging.inputs import InputSpec
from app.imaging.prepare import prepare
from loadtests import ceilings, decoders, gpu, gpu_runs
from loadtests.ceilings import Ceilings, Cost
from loadtests.decoders import Decoders, DecodersError
from models.manifest import load_manifest
from tests.conftest import BUILD

MODEL = "meals-lite2"
SMALL = [
    "--device",
    "cpu",
    "--model",
    MODEL,
    "--seconds",
    "0.05",
    "--feed",
    "2",
    "--built",
    str(BUILD / "models"),
]


def test_a_ceiling_is_the_slowest_of_three() -> None:
    cost = Cost(flops=100, activations=20, weights=1000, pixels=5)
    assert cost.ceiling(1, Ceilings(flops=1e3, memory=1e9, bus=1e9)) == pytest.approx(10)
    assert cost.ceiling(8, Ceilings(flops=1e3, memory=1e9, bus=1e9)) == pytest.approx(10)
    few = Ceilings(flops=1e9, memory=1e3, bus=None)
    assert cost.ceiling(1, few) == pytest.approx(1 / 1.02)
    assert cost.ceiling(100, few) == pytest.approx(100 / 3)  # weights are read once per batch
    assert cost.ceiling(100, Ceilings(flops=1e9, memory=1e9, bus=50)) == pytest.approx(10)


def test_operations_and_bytes_are_those_of_the_layers(tmp_path: Path) -> None:
    manifest = load_manifest(MODEL)
    folder = gpu_runs.artefacts(manifest, BUILD / "models", tmp_path)
    cost = ceilings.cost(manifest, folder, 2)
    assert cost.pixels == 224 * 224 * 3
    assert 1.0e9 < cost.flops < 1.3e9  # twice the multiplications, about 0.57e9 at 224 px
    assert ceilings.cost(manifest, folder, 4).weights == 2 * cost.weights
    assert cost.activations > 3 * 112 * 112 * 32 * 2


def test_a_device_is_measured() -> None:
    found = ceilings.ceilings(torch.device("cpu"), 0.01)
    assert found.flops > 0
    assert found.memory > 0
    assert found.bus is None


def test_every_call_of_every_thread_is_counted() -> None:
    names, both = set(), threading.Barrier(2)

    def work() -> int:
        if threading.current_thread().name not in names:
            names.add(threading.current_thread().name)
            both.wait(10)
        return 3

    ran = gpu_runs.run(work, 2, 0.01)
    assert len(names) == 2
    assert ran.images == 3 * len(ran.calls_s)
    assert list(ran.calls_s) == sorted(ran.calls_s)


def test_an_error_in_a_thread_ends_the_run() -> None:
    def fail() -> int:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        gpu_runs.run(fail, 2, 60.0)


def test_decoders_bring_the_photo_and_wait_for_free_slots() -> None:
    data, spec = gpu_runs.drawn(0.05), InputSpec(64)
    expected = prepare(data, ImageLimits(), [spec]).pixels[0]
    with Decoders(data, spec, processes=2, slots=3) as source:
        taken: list[int] = []
        while len(taken) < 3:
            taken += source.take(3 - len(taken))
        assert sorted(taken) == [0, 1, 2]
        pixels = source.pixels(taken)
        assert (pixels == expected).all()
        source.give_back(taken[:1])
        assert source.take(5) == taken[:1]
    assert not any(process.is_alive() for process in source._processes)


def test_decoders_that_are_gone_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "PATIENCE_S", 0.01)
    source = Decoders(b"no photo", InputSpec(64), processes=1, slots=1)
    with pytest.raises(DecodersError, match="no photo"):
        source.take(1)


def test_a_drawn_photo_is_a_photo() -> None:
    image = Image.open(io.BytesIO(gpu_runs.drawn(0.3)))
    assert image.format == "JPEG"
    assert image.width * image.height == pytest.approx(0.3e6, rel=0.01)
    assert np.asarray(image).std() > 20


def test_the_whole_program_on_cpu_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "gpu.json"
    arguments = [
        "--batches",
        "1",
        "2",
        "--modes",
        "eager",
        "graphs",
        "--megapixels",
        "0.05",
        "--decoders",
        "1",
    ]
    assert gpu.main([*SMALL, *arguments, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    rows = figures["engine"]
    assert [(row["mode"], row["batch"], row["calls"]) for row in rows] == [
        (mode, batch, calls) for mode in ("eager", "graphs") for batch in (1, 2) for calls in (1, 2)
    ]
    assert all(row["images_per_s"] > 0 and row["p99_ms"] >= row["p50_ms"] > 0 for row in rows)
    assert figures["start_s"].keys() == {"eager", "graphs"}
    (decoding,), (fed,) = figures["decoding"], figures["fed"]
    assert decoding["kept"]
    assert min(decoding["decoded_per_s"], decoding["scored_per_s"], fed["images_per_s"]) > 0
    assert 1 <= fed["mean_batch"] <= 2
    printed = capsys.readouterr().out
    assert "of it" in printed
    assert "whole path" in printed


def test_what_openvino_would_have_built_is_made_here(tmp_path: Path) -> None:
    folder = gpu_runs.artefacts(load_manifest(MODEL), tmp_path / "nothing", tmp_path)
    assert folder == tmp_path
    gpu_runs.CudaEngine(load_manifest(MODEL), folder, device="cpu")  # passes its self-test


def test_one_part_that_cannot_run_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError(name="torchvision")

    file = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu_runs, "decoding_rows", missing)
    arguments = ["--batches", "1", "--modes", "graphs", "--megapixels", "0.05", "--decoders", "1"]
    assert gpu.main([*SMALL, *arguments, "--json", str(file)]) == 0
    assert "torchvision is missing" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert figures["decoding"] == []
    assert len(figures["fed"]) == 1


def test_a_missing_package_is_named_with_what_to_install() -> None:
    run = "from loadtests import gpu; sys.exit(gpu.main(['--device', 'cpu']))"
    program = f"import sys; sys.modules['timm'] = None; {run}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("timm is missing; needed are: pip install torch ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no GPU here" in capsys.readouterr().out
