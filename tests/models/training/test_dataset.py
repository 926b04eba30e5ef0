"""Labelled photos: what is read, which split each is in, and what is wrong with them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.training.dataset import (
    CALIBRATE_SHARE,
    TEST_SHARE,
    DatasetError,
    load_photos,
    read_examples,
    split_of,
)


def photo(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG that no other number gives."""
    noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Class folders with so many photos each."""

    def make(**counts: int) -> Path:
        number = 0
        for label, count in counts.items():
            (tmp_path / label).mkdir()
            for _ in range(count):
                (tmp_path / label / f"{number}.jpg").write_bytes(photo(number))
                number += 1
        return tmp_path

    return make


class TestFolders:
    def test_each_is_a_class_whatever_lies_beside_the_photos(self, folders):
        data = folders(ramen=2, gyoza=1)
        (data / "ramen" / "notes.txt").write_text("no photo")
        (data / "classes.csv").write_text("class,food\n")
        assert [(e.label, e.score, e.is_food) for e in read_examples(data)] == [
            ("gyoza", None, True), ("ramen", None, True), ("ramen", None, True),
        ]  # fmt: skip

    def test_that_hold_nothing_are_told(self, tmp_path):
        with pytest.raises(DatasetError, match="one folder per class"):
            read_examples(tmp_path)
        with pytest.raises(DatasetError, match="does not exist"):
            read_examples(tmp_path / "nowhere")


class TestCsv:
    def test_names_photos_beside_it_with_a_class_a_score_or_both(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("\ufeffimage,class,score,note\na.jpg,ramen,,x\nsub/b.jpg,,4,\nc.jpg,not_food,1,\n")
        found = read_examples(table)
        assert [(e.path, e.label, e.score) for e in found] == [
            (tmp_path / "a.jpg", "ramen", None),
            (tmp_path / "sub/b.jpg", None, 4),
            (tmp_path / "c.jpg", "not_food", 1),
        ]
        assert [e.is_food for e in found] == [True, True, False]

    def test_classes_have_one_spelling(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("image,class\na.jpg,Apple pie\nb.jpg,apple-pie\nc.jpg,apple_pie\n")
        assert {example.label for example in read_examples(table)} == {"apple_pie"}

    def test_a_manifest_in_a_folder_is_one(self, tmp_path):
        (tmp_path / "manifest.csv").write_text("path,group,class\na.jpg,dish,ramen\n")
        (example,) = read_examples(tmp_path)
        assert (example.path, example.group) == (tmp_path / "a.jpg", "dish")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "labels.csv:1: the header must name image"),
            ("photo,class\na.jpg,x\n", "labels.csv:1: the header must name image"),
            ("image,label\na.jpg,x\n", "class or score"),
            ("image,class\na.jpg,x\nb.jpg\n", "labels.csv:3: another number of cells"),
            ("image,class\na.jpg,x,y\n", "labels.csv:2: another number of cells"),
            ("image,class\n,x\n", "labels.csv:2: image"),
            ("image,class\na.jpg,\n", "labels.csv:2: image"),
            ("image,score\na.jpg,6\n", "labels.csv:2: score must be 1, 2, 3, 4 or 5, not '6'"),
            ("image,score\na.jpg,4.5\n", "score must be"),
            ('image,class\n"a.jpg,x\n', "is not a CSV"),
        ],
    )
    def test_with_a_mistake_names_the_line(self, tmp_path, text, words):
        table = tmp_path / "labels.csv"
        table.write_text(text)
        with pytest.raises(DatasetError, match=words):
            read_examples(table)

    def test_in_another_encoding_is_told(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_bytes("image,class\na.jpg,crème\n".encode("latin-1"))
        with pytest.raises(DatasetError, match="UTF-8"):
            read_examples(table)


class TestSplits:
    @given(st.binary())
    def test_depend_on_the_bytes_alone(self, data):
        assert split_of(data) == split_of(bytes(data))

    def test_have_the_shares_they_are_said_to_have(self):
        found = [split_of(number.to_bytes(4)) for number in range(20_000)]
        for split, share in (("test", TEST_SHARE), ("calibrate", CALIBRATE_SHARE)):
            # Five standard deviations of a binomial: a wrong share fails, chance does not.
            assert abs(found.count(split) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


class TestPhotos:
    def test_come_as_squares_in_the_order_of_the_labels(self, folders):
        photos = load_photos(read_examples(folders(gyoza=30, ramen=30)), 16)
        assert photos.pixels.shape == (60, 16, 16, 3)
        assert [e.label for e in photos.examples] == ["gyoza"] * 30 + ["ramen"] * 30
        assert photos.warnings == ()
        places = np.concatenate([photos.where(split) for split in ("train", "calibrate", "test")])
        assert sorted(places.tolist()) == list(range(60))
        for place in (0, 59):
            assert split_of(photos.examples[place].path.read_bytes()) == photos.splits[place]

    def test_that_cannot_be_read_or_come_twice_are_left_out_and_counted(self, folders):
        data = folders(gyoza=40, ramen=40)
        (data / "gyoza" / "z-broken.jpg").write_bytes(photo(1)[:200])
        (data / "ramen" / "z-phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        (data / "ramen" / "z-again.jpg").write_bytes(photo(50))  # in ramen already
        (data / "ramen" / "z-both.jpg").write_bytes(photo(2))  # in gyoza too
        photos = load_photos(read_examples(data), 16)
        assert len(photos) == 79, "of a photo under two labels neither counts"
        words = " ".join(photos.warnings)
        assert "2 photos cannot be read and are left out; the first: z-broken.jpg" in words
        assert "2 photos are there more than once" in words
        assert "1 photos are there under two labels" in words

    def test_of_a_tiny_class_are_warned_of(self, folders):
        photos = load_photos(read_examples(folders(gyoza=40, ramen=40, soba=3)), 16)
        assert photos.warnings == ("class soba has 3 photos: too few to learn it from",)

    @pytest.mark.parametrize(
        ("counts", "words"),
        [
            ({"ramen": 40}, "one class only, ramen"),
            ({"ramen": 40, "not_food": 40}, "one class only, ramen"),
            ({"food": 40, "not_food": 40}, "neither two classes nor two different scores"),
            ({"ramen": 1, "gyoza": 1}, "2 photos are too few"),
        ],
    )
    def test_that_nothing_can_be_learnt_from_are_refused(self, folders, counts, words):
        with pytest.raises(DatasetError, match=words):
            load_photos(read_examples(folders(**counts)), 16)

    def test_mostly_unreadable_are_refused(self, folders):
        data = folders(gyoza=40, ramen=40)
        for number in range(30):
            (data / "ramen" / f"z{number}.jpg").write_text(f"no photo {number}")
        with pytest.raises(DatasetError, match=r"30 of 110 photos cannot be read; the first: z0\.jpg"):
            load_photos(read_examples(data), 16)

    def test_with_scores_alone_are_enough(self, tmp_path):
        rows = ["image,score"]
        for number in range(60):
            (tmp_path / f"{number}.jpg").write_bytes(photo(number))
            rows.append(f"{number}.jpg,{1 + number % 5}")
        (tmp_path / "labels.csv").write_text("\n".join(rows))
        photos = load_photos(read_examples(tmp_path / "labels.csv"), 16)
        assert {example.score for example in photos.examples} == {1, 2, 3, 4, 5}
