import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import openvino
import pytest

from models import build as builder
from models.build import BuildError, build, build_apart, is_built, main
from models.manifest import load_manifest
from models.network import WeightsError, load_network

BUILT = Path(__file__).parents[2] / "build" / "models"
NAME = "imagenet-lite0"
MANIFEST = load_manifest(NAME)
MEALS = load_manifest("meals-lite2")


@pytest.fixture(scope="module")
def folder():
    return build(MANIFEST, BUILT)


@pytest.fixture(scope="module")
def int8_folder():
    return build(MEALS, BUILT)


def edited(weights=None, **changes):
    """``MANIFEST`` with changes."""
    manifest = MANIFEST.model_copy(update=changes)
    if weights:
        manifest = manifest.model_copy(update={"weights": MANIFEST.weights.model_copy(update=weights)})
    return manifest


def forbid_making(monkeypatch):
    def fail(*_):
        raise AssertionError("nothing should be made")

    monkeypatch.setattr(builder, "_make", fail)


def test_a_build_holds_what_both_engines_load(folder):
    record = json.loads((folder / "build.json").read_text())
    built = {path.name for path in folder.iterdir() if path.suffix != ".compiled"}  # the engine's own
    assert built == {*record["files"], "build.json"}
    assert set(record["files"]) == {"model.xml", "model.bin", "weights.safetensors"}
    assert record["inputs"]["manifest"]["weights"]["sha256"] == MANIFEST.weights.sha256
    assert record["inputs"]["versions"].keys() == {"openvino", "timm", "torch"}
    for name, file in record["files"].items():
        assert file == {"bytes": (folder / name).stat().st_size, "sha256": builder._sha256(folder / name)}


def test_a_model_that_has_int8_is_built_in_both(int8_folder):
    record = json.loads((int8_folder / "build.json").read_text())
    assert {"model.xml", "model.bin", "int8.xml", "int8.bin"} < set(record["files"])
    assert record["files"]["int8.bin"]["bytes"] < record["files"]["model.bin"]["bytes"] / 3


@pytest.mark.parametrize("file", ["model.xml", "int8.xml"])
def test_the_network_takes_one_photo_of_one_size(int8_folder, file):
    model = openvino.Core().read_model(int8_folder / file)
    assert list(model.input().get_shape()) == [1, 224, 224, 3]  # raises where it is not fixed


def test_what_int8_costs_is_for_the_reader_alone(int8_folder):
    for change, current in ({"cost": {}, "photos": 1}, True), ({"sha256": "0" * 64}, False):
        other = MEALS.model_copy(update={"int8": MEALS.int8.model_copy(update=change)})
        assert is_built(other, BUILT) is current


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"sha256": "0" * 64}, "has SHA-256"), ({"file": "weights/nowhere.safetensors"}, "no weights file")],
)
def test_ranges_other_than_the_manifests_are_refused(tmp_path, change, reason):
    manifest = MEALS.model_copy(update={"int8": MEALS.int8.model_copy(update=change)})
    with pytest.raises(BuildError, match=reason):
        build(manifest, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_does_nothing(folder, monkeypatch):
    before = (folder / "build.json").stat().st_mtime_ns
    forbid_making(monkeypatch)
    assert build(MANIFEST, BUILT) == folder
    assert is_built(MANIFEST, BUILT)
    assert (folder / "build.json").stat().st_mtime_ns == before


def test_a_second_build_does_not_import_torch_or_openvino(folder):
    program = (
        "import sys; from pathlib import Path; from models.build import build; "
        "from models.manifest import load_manifest; "
        f"build(load_manifest({NAME!r}), Path({str(BUILT)!r})); "
        "print(sorted({'torch', 'openvino'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"sha256": "0" * 64}, "has SHA-256 57934424"),
        ({"package": "no_such_package"}, "no_such_package is not installed"),
        ({"file": "models/nowhere.pth"}, "no weights file"),
        ({"package": None}, "no weights file"),
    ],
)
def test_weights_other_than_the_manifests_are_refused_and_nothing_is_left(tmp_path, weights, reason):
    with pytest.raises(BuildError, match=reason):
        build(edited(weights=weights), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_went_in_decides_whether_a_build_is_current(folder):
    surer = MANIFEST.heads[0].model_copy(update={"temperature": 0.5})
    assert not is_built(edited(heads=(surer,)), BUILT)
    stricter = edited(thresholds=replace(MANIFEST.thresholds, food=0.9))
    assert is_built(stricter, BUILT), "thresholds act on answers, not on what is built"


@pytest.mark.parametrize("damage", ["missing", "shorter", "no record"])
def test_a_damaged_build_is_not_current(folder, tmp_path, damage):
    copy = tmp_path / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    assert is_built(MANIFEST, tmp_path)
    victim = copy / ("build.json" if damage == "no record" else "model.bin")
    victim.unlink()
    if damage == "shorter":
        victim.write_bytes(b"short")
    assert not is_built(MANIFEST, tmp_path)


def test_a_stale_build_is_replaced_as_a_whole(tmp_path, monkeypatch):
    stale = tmp_path / MANIFEST.folder
    stale.mkdir()
    (stale / "left-over").touch()
    monkeypatch.setattr(builder, "_make", lambda _manifest, folder, _progress: (folder / "fresh").touch())
    assert build(MANIFEST, tmp_path) == stale
    assert [path.name for path in tmp_path.rglob("*")] == [MANIFEST.folder, "fresh"]


def test_a_build_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    stale = tmp_path / MANIFEST.folder
    stale.mkdir()

    def fail(_manifest, folder, _progress):
        (folder / "half").touch()
        raise BuildError("half-way")

    monkeypatch.setattr(builder, "_make", fail)
    with pytest.raises(BuildError):
        build(MANIFEST, tmp_path)
    assert list(tmp_path.rglob("*")) == [stale]


def test_both_kinds_of_weights_file_give_the_same_network(folder):
    positional = load_network(MANIFEST, builder.weights_path(MANIFEST)).state_dict()
    named = load_network(MANIFEST, folder / "weights.safetensors").state_dict()
    assert positional.keys() == named.keys()
    assert all(named[name].equal(tensor) for name, tensor in positional.items())


def test_weights_of_another_network_are_refused(folder):
    other = load_manifest("imagenet-lite1")
    with pytest.raises(WeightsError, match="order"):
        load_network(MANIFEST, builder.weights_path(other))
    with pytest.raises(WeightsError, match="names differ"):
        load_network(other, folder / "weights.safetensors")
    head = MANIFEST.heads[0].model_copy(update={"size": 7})
    with pytest.raises(WeightsError, match=r"classifier\.\w+ has another shape"):
        load_network(MANIFEST.model_copy(update={"heads": (head,)}), folder / "weights.safetensors")


def test_the_command_builds_what_it_is_told_to(folder, capsys):
    main([NAME, "--out", str(BUILT)])
    assert folder.name in capsys.readouterr().err


def test_a_build_apart_does_nothing_twice_and_says_what_the_other_process_said(
    models_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("models.build.subprocess.run", lambda *_, **__: pytest.fail("nothing was missing"))
    build_apart([MANIFEST], models_dir)
    monkeypatch.undo()
    taken = tmp_path / "taken"
    taken.write_text("a file where the folder should be")
    with pytest.raises(BuildError, match=r"imagenet-lite0 could not be built:(.|\n)*FileExistsError"):
        build_apart([MANIFEST], taken)
