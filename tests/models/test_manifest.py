import pytest

from models.build import weights_path
from models.manifest import (
    MANIFEST,
    MANIFESTS,
    TABLES,
    ManifestError,
    available,
    load_catalogue,
    load_manifest,
    parse_manifest,
    read_manifest,
    write_manifest,
)

TEXT = (MANIFESTS / "imagenet-lite0.toml").read_text("utf-8")
GATE_HEAD = '[[heads]]\nname = "gate"\nkind = "gate"\nsize = 1\n'


def test_the_three_imagenet_models_are_available():
    assert {"imagenet-lite0", "imagenet-lite1", "imagenet-lite2"} <= set(available())


@pytest.mark.parametrize("name", available())
def test_every_manifest_fits_its_weights_and_tables(name):
    manifest = load_manifest(name)
    assert manifest.folder == f"{name}-{manifest.version}"
    assert manifest.licence
    assert weights_path(manifest).is_file()  # and its hash is right
    classes = manifest.columns("classes")
    assert load_catalogue(manifest).classes == classes.stop - classes.start


@pytest.mark.parametrize("name", [name for name in available() if name.startswith("imagenet-")])
def test_imagenet_inputs_are_cropped_as_their_weights_were_evaluated(name):
    spec = load_manifest(name).input
    assert spec.crop_fraction == spec.size / (spec.size + 32)


@pytest.mark.parametrize("name", ["no-such-model", "../manifests/imagenet-lite0", ""])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ManifestError, match="imagenet-lite0"):
        load_manifest(name)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("size = 1000", "size = 1000\ntemperature = 0", "heads.0.temperature"),
        ("size = 1000", 'size = 1000\ntemperature = "1.0"', "heads.0.temperature"),
        ("size = 1000", "size = 1000\ntemprature = 1.0", "temprature"),
        ('version = "1"', "version = 1", "version"),
        ('version = "1"', 'version = "1/../.."', "version"),
        ('kind = "classes"', 'kind = "regression"', "heads.0.kind"),
        ('kind = "classes"', 'kind = "score"', "heads.0: .*a score head has 4 logits"),
        ('kind = "classes"', 'kind = "gate"', "classes"),
        ("size = 1000", "size = 1000.5", "heads.0.size"),
        ("[[heads]]", '[[heads]]\nname = "labels"\nkind = "gate"\nsize = 1\n[[heads]]', "same name"),
        ('file = "models/', 'file = "../models/', "weights.file"),
        ('file = "models/', 'file = "models/../../', "weights.file"),
        ('sha256 = "5793', 'sha256 = "XYZ3', "weights.sha256"),
        ("std = 128.0", "std = 0", "input.std"),
        ("bicubic", "cubic", "input.interpolation"),
        ("review = 1.0", "review = 1.0\nentropy = 1.0", "thresholds.entropy"),
        ("food = 0.15", "food = 1.5", "thresholds"),
        ("[weights]", "[weights", "not TOML"),
        ("[weights]", '[int8]\nfile = "../a.safetensors"\nsha256 = ""\nphotos = 1\n[weights]', "int8.file"),
        ("[weights]", '[int8]\nfile = "a.safetensors"\nsha256 = "x"\nphotos = 1\n[weights]', "int8.sha256"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(old, new, key):
    assert old in TEXT
    with pytest.raises(ManifestError, match=key):
        parse_manifest(TEXT.replace(old, new, 1), "model.toml")


@pytest.mark.parametrize(("old", "new"), [('labels = "imagenet.csv"', 'labels = "nowhere.csv"')])
def test_a_table_that_is_missing_is_named(tmp_path, old, new):
    (tmp_path / MANIFEST).write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ManifestError, match=r"no table nowhere\.csv"):
        read_manifest(tmp_path / MANIFEST)


@pytest.mark.parametrize("name", available())
def test_what_is_written_is_what_is_read(tmp_path, name):
    manifest = load_manifest(name)
    write_manifest(manifest, tmp_path / MANIFEST)
    assert read_manifest(tmp_path / MANIFEST).model_dump() == manifest.model_dump()


def test_a_registered_model_is_found_by_name_and_version(tmp_path):
    own = load_manifest("imagenet-lite0").model_copy(update={"name": "our-canteen", "version": "2.1"})
    folder = tmp_path / own.folder
    folder.mkdir()
    write_manifest(own, folder / MANIFEST)
    assert available(tmp_path) == (*available(), "our-canteen@2.1")
    found = load_manifest("our-canteen@2.1", tmp_path)
    assert (found.model_dump(), found.ref, found.root) == (own.model_dump(), "our-canteen@2.1", folder)
    assert found.table("foods.csv") == TABLES / "foods.csv"
    (folder / "foods.csv").touch()
    assert found.table("foods.csv") == folder / "foods.csv"
    folder.rename(tmp_path / "our-canteen-3")
    with pytest.raises(ManifestError, match=r"holds our-canteen@2\.1"):
        load_manifest("our-canteen@3", tmp_path)


def test_curves_and_training_are_kept(tmp_path):
    rows = ((0.1, 0.99, 0.2), (0.5, 0.9, 0.01))
    own = load_manifest("imagenet-lite0").model_copy(
        update={"curves": {"gate": rows}, "training": {"base": 'the "best"', "epochs": 3}}
    )
    write_manifest(own, tmp_path / MANIFEST)
    found = read_manifest(tmp_path / MANIFEST)
    assert (found.curves, found.training) == (own.curves, own.training)


def test_columns_say_where_each_kind_of_head_is():
    manifest = parse_manifest(TEXT.replace("[[heads]]", f"{GATE_HEAD}[[heads]]"), "model.toml")
    assert manifest.columns("gate") == slice(0, 1)
    assert manifest.columns("classes") == slice(1, 1001)
    assert manifest.logits == 1001
    assert load_manifest("imagenet-lite0").columns("gate") is None


def test_as_many_labels_as_classes():
    manifest = parse_manifest(TEXT.replace("size = 1000", "size = 999"), "model.toml")
    with pytest.raises(ManifestError, match="1000 labels, not 999"):
        load_catalogue(manifest)


def test_a_manifest_cannot_be_changed():
    manifest = load_manifest("imagenet-lite0")
    with pytest.raises(ValueError, match="frozen"):
        manifest.version = "2"
