"""Run folders as a training leaves them, of models that know three things and were never trained."""

import hashlib
import json
from pathlib import Path
from typing import Any

from models.heads import Head
from models.manifest import MANIFEST, Weights, load_manifest, write_manifest

LABELS = "index,label,food\n0,pizza,pizza\n1,tiramisu,tiramisu\n2,stone,\n"


def write_run(folder: Path, name: str = "salad", version: str = "1", **changes: Any) -> Path:
    """A run folder with everything but weights that could be loaded."""
    folder.mkdir(parents=True)
    weights = f"weights of {name} {version}".encode()
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "labels.csv").write_text(LABELS)
    own = {
        "name": name,
        "version": version,
        "labels": "labels.csv",
        "weights": Weights(file="weights.safetensors", sha256=hashlib.sha256(weights).hexdigest()),
        "heads": (Head(name="classes", kind="classes", size=3),),
    }
    write_manifest(load_manifest("imagenet-lite0").model_copy(update=own | changes), folder / MANIFEST)
    metrics = {"heads alone": {"top1": 0.5}, "fine-tuned": {"top1": 0.75, "top5": 1.0}, "seconds": 12}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "checkpoint.pt").write_bytes(b"large, and of no use to who serves")
    return folder
