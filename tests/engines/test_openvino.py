import gc
import io
from functools import cache
from pathlib import Path

import numpy as np
import openvino
import pytest
import skimage.data
from PIL import Image

from app.engines import EngineError, create_engine
from app.engines import openvino as module
from app.engines.inputs import input_spec
from app.engines.openvino import OpenVinoEngine, choose_precision
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from models.build import build
from models.manifest import load_manifest

BUILT = Path(__file__).parents[2] / "build" / "models"
MEALS = load_manifest("meals-lite2")
LITE0 = load_manifest("imagenet-lite0")
NOISE = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), np.uint8)


@cache
def engine(precision="auto", threads=2):
    return OpenVinoEngine(MEALS, build(MEALS, BUILT), threads=threads, precision=precision)


@cache
def photos():
    """Uint8 (4, 224, 224, 3): coffee, a cat, a person, a rocket."""
    batch = []
    for name in ("coffee", "chelsea", "astronaut", "rocket"):
        file = io.BytesIO()
        Image.fromarray(getattr(skimage.data, name)()).save(file, "PNG")
        batch.append(prepare(file.getvalue(), ImageLimits(), [input_spec(MEALS)]).pixels[0])
    return np.stack(batch)


VNNI, BF16 = {"sse2", "avx512_vnni"}, {"FP32", "INT8", "BF16"}


@pytest.mark.parametrize(
    ("wanted", "int8", "capabilities", "flags", "chosen"),
    [
        ("auto", True, BF16, VNNI, "int8"),
        ("auto", True, BF16, {"avx_vnni"}, "int8"),
        ("auto", True, BF16, {"avx2"}, "bf16"),  # "INT8" is a capability of every x86
        ("auto", True, {"FP32", "INT8"}, {"avx2"}, "f32"),
        ("auto", False, BF16, VNNI, "bf16"),
        ("auto", False, {"FP32"}, VNNI, "f32"),
        ("int8", True, {"FP32"}, set(), "int8"),
        ("int8", False, BF16, VNNI, "bf16"),
        ("bf16", True, {"FP32"}, VNNI, "bf16"),
        ("f32", True, BF16, VNNI, "f32"),
    ],
)
def test_the_precision_is_what_model_and_cpu_have(wanted, int8, capabilities, flags, chosen):
    assert choose_precision(wanted, int8=int8, capabilities=capabilities, flags=flags) == chosen


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("int8", 0.1)])
def test_less_precision_says_nearly_the_same(precision, tolerance):
    exact, found = engine("f32").predict(photos()), engine(precision).predict(photos())
    assert engine(precision).precision == precision
    assert np.abs(found - exact).max() <= tolerance
    assert not np.array_equal(found, exact)
    gate = MEALS.columns("gate")
    passed = [(rows[:, gate] >= MEALS.thresholds.food).ravel().tolist() for rows in (exact, found)]
    assert passed == [[True, False, False, False]] * 2


def test_a_model_without_int8_runs_as_before():
    running = create_engine("cpu", LITE0, build(LITE0, BUILT), threads=1, precision="int8")
    assert running.precision in ("bf16", "f32")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 40])
def test_rows_are_in_the_order_of_the_photos_however_many(count, threads):
    running = engine("int8", threads)
    alone = np.concatenate([running.predict(photo[None]) for photo in NOISE[:count]])
    np.testing.assert_array_equal(running.predict(NOISE[:count]), alone)


class TestCompiledBefore:
    @pytest.fixture
    def folder(self, tmp_path):
        for file in build(MEALS, BUILT).iterdir():
            if file.suffix != ".compiled":
                (tmp_path / file.name).symlink_to(file)
        return tmp_path

    @pytest.fixture
    def never_compile(self, monkeypatch):
        def switch():
            monkeypatch.setattr(openvino.Core, "compile_model", lambda *_: pytest.fail("it compiles"))

        return switch

    def load(self, folder, **options):
        return OpenVinoEngine(MEALS, folder, threads=1, **{"precision": "int8"} | options)

    @pytest.mark.parametrize("precision", ["bf16", "int8"])
    def test_is_loaded_by_the_next(self, folder, never_compile, precision):
        expected = self.load(folder, precision=precision).predict(NOISE[:3])
        never_compile()
        again = self.load(folder, precision=precision)
        gc.collect()
        rubbish = [np.full(2**20, 255, np.uint8) for _ in range(64)]  # over whatever was freed too early
        np.testing.assert_array_equal(again.predict(NOISE[:3]), expected)
        assert rubbish

    def test_each_precision_has_its_own(self, folder):
        for precision in ("f32", "int8"):
            self.load(folder, precision=precision)
        assert sorted(path.name.split("-")[0] for path in folder.glob("*.compiled")) == ["f32", "int8"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[: len(content) // 2],
            lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
            lambda content: b"",
            lambda content: b"short",
            lambda content: content[:5000] + module._DIGEST(content[:5000]).digest(),
        ],
        ids=["half", "a bit", "empty", "short", "sound, but no model"],
    )
    def test_is_compiled_again_if_damaged(self, folder, never_compile, damage):
        expected = self.load(folder).predict(NOISE[:1])
        (kept,) = folder.glob("*.compiled")
        sound = kept.read_bytes()
        kept.write_bytes(damage(sound))
        np.testing.assert_array_equal(self.load(folder).predict(NOISE[:1]), expected)
        never_compile()
        self.load(folder)

    @pytest.mark.parametrize("change", ["OpenVINO", "CPU", "model"])
    def test_is_not_taken_for_another(self, folder, monkeypatch, change):
        self.load(folder)
        (first,) = folder.glob("*.compiled")
        if change == "OpenVINO":
            monkeypatch.setattr(openvino, "get_version", lambda: "2031.1")
        elif change == "CPU":
            monkeypatch.setattr(module, "_cpu", lambda: ("AMD EPYC", frozenset({"avx2"})))
        else:
            content = (folder / "int8.xml").read_bytes()
            (folder / "int8.xml").unlink()
            (folder / "int8.xml").write_bytes(content + b"\n")
        self.load(folder)
        assert len({first, *folder.glob("*.compiled")}) == 2

    def test_is_not_asked_for(self, folder):
        self.load(folder, keep_compiled=False)
        assert not list(folder.glob("*.compiled"))

    def test_cannot_be_kept(self, folder, monkeypatch):
        def fail(*_, **__):
            raise OSError("Read-only file system")

        monkeypatch.setattr(module.tempfile, "mkstemp", fail)
        self.load(folder).predict(NOISE[:1])
        assert not list(folder.glob("*.compiled"))

    def test_leaves_no_scraps(self, folder, monkeypatch):
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        self.load(folder)
        assert not [path.name for path in folder.iterdir() if "compiled" in path.name]


class BrokenRequest:
    def start(self, _):
        raise RuntimeError("the stream is gone")


def test_a_failing_device_is_an_engine_error(monkeypatch):
    running = OpenVinoEngine(MEALS, build(MEALS, BUILT), threads=1)
    monkeypatch.setattr(running, "_requests", [BrokenRequest()])
    with pytest.raises(EngineError, match="inference failed"):
        running.predict(NOISE[:1])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_engine_error(monkeypatch, wrong):
    class Request:
        def start(self, _):
            pass

        def result(self):
            row = np.zeros(MEALS.logits, np.float32)
            row[7] = wrong
            return row

    running = OpenVinoEngine(MEALS, build(MEALS, BUILT), threads=1)
    monkeypatch.setattr(running, "_requests", [Request()])
    with pytest.raises(EngineError, match="not finite"):
        running.predict(NOISE[:2])
