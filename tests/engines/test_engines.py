import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from app.engines import EngineError, create_engine, cuda
from app.engines.cuda import CudaEngine
from app.engines.openvino import OpenVinoEngine
from app.food.assessment import read
from app.imaging.guards import ImageLimits
from app.imaging.inputs import InputSpec
from app.imaging.prepare import prepare
from models import selftest
from models.build import build
from models.manifest import load_catalogue, load_manifest

BUILT = Path(__file__).parents[2] / "build" / "models"
PHOTOS = ("coffee", "chelsea", "astronaut", "rocket")
IMAGENET = ("imagenet-lite0", "imagenet-lite1")
MEALS = ("meals-lite2", "meals-lite0")
NAMES = (*IMAGENET, *MEALS)
LITE0 = load_manifest("imagenet-lite0")


@cache
def openvino_engine(name, precision="auto"):
    manifest = load_manifest(name)
    return OpenVinoEngine(manifest, build(manifest, BUILT), threads=2, precision=precision)


@cache
def torch_engine(name):
    return CudaEngine(load_manifest(name), build(load_manifest(name), BUILT), device="cpu")


@cache
def photos(name):
    """The photos as the model ``name`` takes them, uint8 (4, size, size, 3)."""
    spec = load_manifest(name).input
    specs = [InputSpec(spec.size, spec.crop_fraction, spec.interpolation)]
    batch = []
    for photo in PHOTOS:
        file = io.BytesIO()
        Image.fromarray(getattr(skimage.data, photo)()).save(file, "PNG")
        batch.append(prepare(file.getvalue(), ImageLimits(), specs).pixels[0])
    return np.stack(batch)


def top5(probabilities):
    return [set(row.argsort()[-5:].tolist()) for row in probabilities]


ENGINES = pytest.mark.parametrize("engine", [openvino_engine, torch_engine])


@ENGINES
@pytest.mark.parametrize("name", MEALS)
def test_a_meals_model_knows_food_from_cats(engine, name):
    manifest = load_manifest(name)
    found = engine(manifest.name).predict(photos(manifest.name))
    classes, gate = manifest.columns("classes"), manifest.columns("gate")
    assert found.shape == (len(PHOTOS), manifest.outputs)
    np.testing.assert_allclose(found[:, classes].sum(axis=1), 1, rtol=1e-5)
    catalogue = load_catalogue(manifest)
    likeliest = catalogue.food_of_class[found[0, classes].argmax()]
    assert catalogue.names[likeliest] in {"coffee", "hot chocolate"}
    assert (found[:, gate].ravel() >= manifest.thresholds.food).tolist() == [True, False, False, False]


@ENGINES
@pytest.mark.parametrize("name", IMAGENET)
def test_an_engine_sees_what_is_in_a_photo(engine, name):
    manifest = load_manifest(name)
    running = engine(name)
    assert (running.name, running.version, running.input_size) == (
        name,
        manifest.version,
        manifest.input.size,
    )
    found = running.predict(photos(name))
    assert found.shape == (len(PHOTOS), manifest.logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    coffee, chelsea, *_ = found.argmax(axis=1)
    assert coffee == 967  # espresso
    assert chelsea in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    catalogue = load_catalogue(manifest)
    foods = [read(row, catalogue).food_probability >= manifest.thresholds.food for row in found]
    assert foods == [True, False, False, False]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-4), ("auto", 0.05)])
def test_both_engines_agree(name, precision, tolerance):
    expected = torch_engine(name).predict(photos(name))
    found = openvino_engine(name, precision).predict(photos(name))
    if precision == "f32":
        assert top5(found) == top5(expected)
    else:  # of a photo that shows no class, the fifth may change places with the sixth
        assert all(len(one & other) >= 4 for one, other in zip(top5(found), top5(expected), strict=True))
    assert np.abs(found - expected).max() <= tolerance
    catalogue, stars = load_catalogue(load_manifest(name)), np.arange(1, 6)
    classes = load_manifest(name).columns("classes")
    coffee = [read(answers[0, classes], catalogue).traits[:5] @ stars for answers in (found, expected)]
    assert abs(coffee[0] - coffee[1]) <= 2 * tolerance


@ENGINES
def test_a_batch_is_its_photos_one_by_one(engine, monkeypatch):
    monkeypatch.setattr(cuda, "BUCKETS", (1, 2))  # so that the batch is both split and padded
    batch = np.concatenate([photos(LITE0.name), photos(LITE0.name)[:1]])
    running = engine(LITE0.name)
    alone = np.concatenate([running.predict(photo[None]) for photo in batch])
    np.testing.assert_allclose(running.predict(batch), alone, atol=1e-5)
    np.testing.assert_allclose(running.predict(batch[::-1]), alone[::-1], atol=1e-5)


@ENGINES
def test_an_empty_batch_is_fine(engine):
    assert engine(LITE0.name).predict(np.empty((0, 224, 224, 3), np.uint8)).shape == (0, LITE0.logits)


@ENGINES
def test_arrays_as_ray_hands_them_over_are_fine(engine):
    batch = photos(LITE0.name)[::2]  # not contiguous
    expected = engine(LITE0.name).predict(batch.copy())
    batch.setflags(write=False)
    np.testing.assert_allclose(engine(LITE0.name).predict(batch), expected, atol=1e-5)


@ENGINES
@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 240, 240, 3), np.uint8),
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((1, 3, 224, 224), np.uint8),
        np.zeros((1, 224, 224, 3), np.float32),
    ],
    ids=["size", "no batch", "NCHW", "dtype"],
)
def test_another_shape_or_dtype_is_the_callers_mistake(engine, pixels):
    with pytest.raises(ValueError, match=r"not uint8 \(N, 224, 224, 3\)"):
        engine(LITE0.name).predict(pixels)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: OpenVinoEngine(LITE0, folder, threads=1),
        lambda folder: CudaEngine(LITE0, folder, device="cpu"),
    ],
    ids=["openvino", "torch"],
)
class TestBrokenArtefacts:
    @pytest.fixture
    def copy(self, tmp_path):
        for file in build(LITE0, BUILT).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def test_an_answer_other_than_the_builds_stops_the_engine(self, make, copy):
        make(copy)
        record = json.loads((copy / "build.json").read_text())
        record["self_test"][0] = {"7": 0.9}
        (copy / "build.json").write_text(json.dumps(record))
        with pytest.raises(EngineError, match=r"self-test is off by 0\.9"):
            make(copy)

    @pytest.mark.parametrize("record", ["", "{}"])
    def test_so_does_a_build_without_answers(self, make, copy, record):
        (copy / "build.json").write_text(record)
        with pytest.raises(EngineError, match="nothing usable was built"):
            make(copy)

    def test_so_does_a_broken_file(self, make, copy):
        for name in ("model.xml", "weights.safetensors"):
            (copy / name).write_bytes(b"broken")
        with pytest.raises(EngineError, match="cannot load"):
            make(copy)

    def test_so_does_no_build_at_all(self, make, tmp_path):
        with pytest.raises(EngineError, match="cannot load"):
            make(tmp_path / "nowhere")


def test_the_self_test_takes_no_nan_for_an_answer():
    answers = np.full((2, 4), 0.25, np.float32)
    expected = selftest.expectation(answers)
    assert selftest.disagreement(answers, expected) == 0
    answers[1, 3] = np.nan
    assert selftest.disagreement(answers, expected) == float("inf")


def test_cuda_works_where_there_is_a_gpu_and_says_so_where_there_is_none():
    artefacts = build(LITE0, BUILT)
    if torch.cuda.is_available():
        found = create_engine("cuda", LITE0, artefacts, threads=1).predict(photos(LITE0.name))
        assert np.abs(found - torch_engine(LITE0.name).predict(photos(LITE0.name))).max() <= 0.05
    else:
        with pytest.raises(EngineError, match="cannot load"):
            create_engine("cuda", LITE0, artefacts, threads=1)


def test_a_cpu_replica_never_imports_torch():
    program = f"""
import sys
from pathlib import Path
import numpy as np
from app.engines import create_engine
from models.build import build
from models.manifest import load_manifest

manifest = load_manifest({LITE0.name!r})
engine = create_engine("cpu", manifest, build(manifest, Path({str(BUILT)!r})), threads=1)
engine.predict(np.zeros((2, 224, 224, 3), np.uint8))
print(sorted({{"torch", "torchvision", "timm"}} & sys.modules.keys()))
"""
    build(LITE0, BUILT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
