"""Plain-coloured photos, and an engine that tells foods apart by their colour: evaluation without weights."""

import numpy as np
from PIL import Image

CLASSES = {"strawberry": 949, "broccoli": 937, "pizza": 963}  # of imagenet-lite0
COLOURS = {"strawberry": (200, 20, 40), "broccoli": (30, 160, 40), "pizza": (230, 190, 90)}
TENCH = 0


def make_photos(folder, count=4, classes=COLOURS):
    """``count`` photos of each class, each in a folder of its name; no two are alike."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40 + number, 30), COLOURS[name]).save(folder / name / f"{number}.png")


class ColourEngine:
    """Gives 0.9 to the class of the nearest colour, or to the one that ``mistakes`` takes it for."""

    def __init__(self, manifest, mistakes=()):
        self.name, self.version, self.input_size = manifest.name, manifest.version, manifest.input.size
        self.mistakes = dict(mistakes)
        self.batches = []

    def predict(self, pixels):
        self.batches.append(len(pixels))
        rows = np.full((len(pixels), 1000), 0.1 / 999, np.float32)
        colours = np.array([*COLOURS.values()])
        for row, photo in zip(rows, pixels, strict=True):
            name = [*COLOURS][int(np.abs(colours - photo.mean(axis=(0, 1))).sum(axis=1).argmin())]
            name = self.mistakes.get(name, name)
            row[CLASSES.get(name, TENCH)] = 0.9
        return rows / rows.sum(axis=1, keepdims=True)

    def warm_up(self, max_batch):
        """Nothing to do."""


def make_artefacts(folder):
    """What a build leaves behind, as far as its size is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("model.xml", "model.bin"):
        (folder / file).write_bytes(bytes(500_000))
    return folder
