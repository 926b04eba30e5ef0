import io
import sys
import tarfile
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest

from models import photos
from models.photos import Package, PhotosUnavailable, gate_photos, imagenet_photos, raw_food_photos


def pinned(path, command=("no-such-client",)):
    """A package whose file is ``path`` as it is now."""
    return Package(path.name, f"sha256:{sha256(path.read_bytes()).hexdigest()}", command)


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_the_class_of_an_imagenet_photo_is_in_its_name(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr("foolbox/data/imagenet_04_949.jpg", b"strawberry")
        wheel.writestr("foolbox/data/mnist_00_7.png", b"seven")
    monkeypatch.setattr(photos, "FOOLBOX", pinned(tmp_path / "wheel.whl"))
    (photo,) = imagenet_photos(tmp_path)
    assert (photo.data, photo.truth) == (b"strawberry", "949")


def test_raw_foods_join_by_code_and_a_photo_that_two_share_counts_once(tmp_path, monkeypatch):
    table = (
        b'"Food Code; code","Food Group; grup"\n"A001","Grain Legumes"\n"E001","Fruits"\n"E002","Fruits"\n'
    )
    pack(tmp_path / "tables.tgz", {"index.csv": table})
    pack(
        tmp_path / "pictures.tgz",
        {"assets/A001.jpeg": b"lentils", "assets/E001.jpeg": b"apple", "assets/E002.jpeg": b"apple"},
    )
    monkeypatch.setattr(photos, "COMPOSITIONS", pinned(tmp_path / "tables.tgz"))
    monkeypatch.setattr(photos, "PICTURES", pinned(tmp_path / "pictures.tgz"))
    found = [(photo.data, photo.truth) for photo in raw_food_photos(tmp_path)]
    assert found == [(b"lentils", "Grain Legumes"), (b"apple", "Fruits")]


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "wheel.whl").write_bytes(b"genuine")
    package = pinned(tmp_path / "wheel.whl")
    (tmp_path / "wheel.whl").write_bytes(b"forged")
    monkeypatch.setattr(photos, "FOOLBOX", package)
    with pytest.raises(PhotosUnavailable, match="not the file that was pinned"):
        imagenet_photos(tmp_path)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-client",), "not installed"),
        ((sys.executable, "-c", "raise SystemExit(1)"), "could not fetch"),
    ],
)
def test_a_package_that_cannot_be_fetched_says_why(tmp_path, monkeypatch, command, reason):
    monkeypatch.setattr(photos, "FOOLBOX", replace(photos.FOOLBOX, command=command))
    with pytest.raises(PhotosUnavailable, match=reason):
        imagenet_photos(tmp_path / "cache")


def test_a_gate_folder_is_labelled_by_its_subfolders(tmp_path):
    for truth in ("food", "not_food"):
        (tmp_path / truth).mkdir()
        (tmp_path / truth / "one.jpg").write_bytes(truth.encode())
    assert [(photo.data.decode(), photo.truth) for photo in gate_photos(tmp_path)] == [
        ("food", "food"),
        ("not_food", "not_food"),
    ]
