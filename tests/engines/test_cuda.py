"""The torch engine: its answers on CPU tensors, its use of a GPU on one as late as CUDA allows."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engines import EngineError, cuda, lanes
from app.engines.cuda import CudaEngine
from models.build import build
from models.manifest import load_manifest
from tests.engines.late_device import LateDevice

BUILT = Path(__file__).parents[2] / "build" / "models"
LITE0 = load_manifest("imagenet-lite0")
SIZE = LITE0.input.size
CPU = torch.device("cpu")


def make_engine(**options):
    return CudaEngine(LITE0, build(LITE0, BUILT), device="cpu", **options)


@cache
def shared_engine():
    return make_engine()


def photos(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def answer(pixels):
    """Logits that tell one photo from another, and depend on nothing else."""
    corner = pixels[:, :20, :50, 0].flatten(1).float()
    return corner / 255


@pytest.fixture
def late():
    return LateDevice()


@pytest.fixture
def late_engine(late, monkeypatch):
    """An engine whose lanes are on the late device; it is not warmed up."""
    engine = make_engine()
    tests = []
    monkeypatch.setattr(lanes, "torch", late)
    monkeypatch.setattr(cuda, "run_self_test", lambda *_: tests.append(1))
    engine._device, engine._network = torch.device("cuda"), late.network(answer)
    engine.self_tests = tests
    return engine


def expected(pixels):
    return cuda.probabilities(answer(torch.from_numpy(pixels)).numpy(), LITE0.heads)


class TestOnALateDevice:
    def test_many_threads_get_their_own_answers(self, late_engine):
        late_engine.warm_up(4)

        def caller(seed):
            rng = np.random.default_rng(seed)
            for _ in range(15):
                batch = photos(int(rng.integers(0, 11)), int(rng.integers(1000)))
                np.testing.assert_array_equal(late_engine.predict(batch), expected(batch))

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(caller, range(5)))

    def test_a_large_batch_uses_every_lane_in_turn(self, late_engine):
        late_engine.warm_up(4)
        batch = photos(23)
        np.testing.assert_array_equal(late_engine.predict(batch), expected(batch))

    def test_photos_on_the_device_are_waited_for(self, late_engine, late):
        late_engine.warm_up(4)
        batch = photos(6)
        tensor = torch.zeros((6, SIZE, SIZE, 3), dtype=torch.uint8)
        late.send(lambda: tensor.copy_(torch.from_numpy(batch)))  # still to come when predict begins
        late_engine._device = CPU  # where the tensor says it is
        np.testing.assert_array_equal(late_engine.predict_device(tensor), expected(batch))

    def test_every_lane_has_graphs_of_its_own_the_largest_first(self, late_engine, late):
        late_engine.warm_up(3)
        assert [bucket for bucket, _, _ in late.captures] == [4, 2, 1] * 2
        assert len({(id(stream), id(pool)) for _, stream, pool in late.captures}) == 2
        assert len({id(stream) for _, stream, _ in late.captures}) == 2
        assert len(late_engine.self_tests) == 2  # once per lane

    def test_eager_captures_nothing(self, late_engine, late):
        late_engine._mode = "eager"
        late_engine.warm_up(4)
        batch = photos(3)
        np.testing.assert_array_equal(late_engine.predict(batch), expected(batch))
        assert late.captures == []

    def test_what_cannot_be_captured_is_launched_and_logged(self, late_engine, late, caplog):
        late.refused = {2}
        with caplog.at_level(logging.INFO, "ray.serve"):
            late_engine.warm_up(4)
        batch = photos(6)
        np.testing.assert_array_equal(late_engine.predict(batch), expected(batch))
        refusals = [record for record in caplog.records if record.message == "graph not captured"]
        assert [record.bucket for record in refusals] == [2, 2]
        (done,) = [record for record in caplog.records if record.message == "engine warmed up"]
        assert done.graphs == [[1, 4], [1, 4]]
        assert done.buckets == [1, 2, 4]
        assert done.seconds >= 0

    def test_a_graph_that_answers_otherwise_stops_the_engine(self, late_engine, late):
        late.lie = 0.3
        with pytest.raises(EngineError, match="the graph of a batch of 4 differs"):
            late_engine.warm_up(4)

    def test_a_broken_device_is_an_engine_error_and_leaves_nobody_waiting(self, late_engine, late):
        late_engine.warm_up(2)
        late.broken = True
        for _ in range(4):  # more than there are lanes
            with pytest.raises(EngineError, match="illegal memory access"):
                late_engine.predict(photos(5))

    def test_a_device_that_breaks_in_a_capture_is_an_engine_error(self, late_engine, late):
        late.breaking, late_engine.concurrency = {1}, 1  # the last one: nothing after it could notice
        with pytest.raises(EngineError, match="warm-up failed"):
            late_engine.warm_up(2)


def test_calls_overlap_up_to_the_number_of_lanes(monkeypatch):
    engine = make_engine(lanes=2)
    assert engine.concurrency == 2
    both, third = threading.Barrier(2), threading.Event()
    inside = []

    def network(pixels):
        inside.append(1)
        if len(inside) <= 2:
            both.wait(timeout=30)  # passes only if two are inside at once
            assert not third.wait(timeout=0.1)
        else:
            third.set()
        return torch.zeros((len(pixels), LITE0.logits))

    engine._network = network
    engine._open(1)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(engine.predict, [photos(1)] * 3))
    assert len(inside) == 3


@given(count=st.integers(0, 2000), capacity=st.sampled_from(cuda.BUCKETS))
def test_every_photo_is_in_one_bucket_that_holds_it(count, capacity):
    batches = list(cuda._batches(count, capacity))
    assert [row for rows, _ in batches for row in range(rows.start, rows.stop)] == list(range(count))
    for rows, bucket in batches:
        assert bucket in cuda.BUCKETS
        assert rows.stop - rows.start <= bucket <= capacity


@pytest.mark.parametrize(("largest", "ran"), [(1, [1]), (3, [4, 2, 1]), (64, [4, 2, 1]), (1000, [4, 2, 1])])
def test_warming_up_runs_every_bucket_that_will_be_used(monkeypatch, largest, ran):
    monkeypatch.setattr(cuda, "BUCKETS", (1, 2, 4))
    engine = make_engine(lanes=1)
    seen = []
    network = engine._network
    engine._network = lambda pixels: seen.append(len(pixels)) or network(pixels)
    engine.warm_up(largest)
    self_test = [2] if len(ran) > 1 else [1, 1]
    assert seen == ran + self_test
    engine.predict(photos(ran[0] + 1))
    assert seen[len(ran + self_test) :] == [ran[0], 1]


def test_warming_up_asks_the_self_test_of_every_lane():
    engine = make_engine(lanes=2)
    network, calls = engine._network, []

    def second_lane_lies(pixels):
        calls.append(1)
        return network(pixels) * (1 if len(calls) < 4 else -1)

    engine._network = second_lane_lies
    with pytest.raises(EngineError, match="self-test is off"):
        engine.warm_up(1)


def test_photos_on_the_device_are_answered_like_those_in_memory():
    batch = photos(3)
    found = shared_engine().predict_device(torch.from_numpy(batch))
    np.testing.assert_array_equal(found, shared_engine().predict(batch))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros((1, 3, SIZE, SIZE), dtype=torch.uint8),
        torch.zeros((SIZE, SIZE, 3), dtype=torch.uint8),
        torch.zeros((1, SIZE, SIZE, 3)),
        torch.zeros((1, SIZE, SIZE, 3), dtype=torch.uint8, device="meta"),
    ],
    ids=["NCHW", "no batch", "dtype", "device"],
)
def test_other_tensors_are_the_callers_mistake(pixels):
    with pytest.raises(ValueError, match="pixels are"):
        shared_engine().predict_device(pixels)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_engine_error(wrong):
    engine = make_engine()
    logits = torch.zeros((2, LITE0.logits))
    logits[1, 7] = wrong  # one number of one photo
    engine._network = lambda _: logits
    engine._open(2)
    with pytest.raises(EngineError, match="not finite"):
        engine.predict(photos(2))


def test_bfloat16_as_on_a_gpu_agrees():
    batch = photos(4)
    found = make_engine(precision="bf16").predict(batch)
    assert np.abs(found - shared_engine().predict(batch)).max() <= 0.05


def test_what_stands_in_the_padding_changes_nothing():
    engine = make_engine(lanes=1)
    engine.warm_up(4)
    batch = photos(3)
    engine.predict(np.zeros((4, SIZE, SIZE, 3), np.uint8))
    over_black = engine.predict(batch)
    engine.predict(photos(4, seed=9))
    np.testing.assert_array_equal(engine.predict(batch), over_black)


def test_compiled_networks_are_asked_of_torch(monkeypatch):
    asked = []

    def compile_as_it_is(network, **options):
        asked.append(options)
        return network

    monkeypatch.setattr(torch, "compile", compile_as_it_is)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    make_engine(mode="compiled")
    assert asked == [{"dynamic": False, "mode": "max-autotune-no-cudagraphs"}]
    assert torch._dynamo.config.recompile_limit >= 2 * len(cuda.BUCKETS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnAGpu:
    @pytest.fixture(scope="class")
    def engine(self):
        engine = CudaEngine(LITE0, build(LITE0, BUILT))
        engine.warm_up(8)
        return engine

    def test_every_bucket_is_a_graph(self, engine):
        assert [lane.captured for lane in (engine._idle.get(), engine._idle.get())] == [(1, 2, 4, 8)] * 2

    def test_threads_get_what_the_cpu_says(self, engine):
        batches = [photos(count, seed=count) for count in range(1, 20)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(engine.predict, batches))
        for batch, rows in zip(batches, found, strict=True):
            assert np.abs(rows - shared_engine().predict(batch)).max() <= 0.05
