"""Pillow's own test images: a thousand odd, old, broken and hostile files.

They come with Pillow's source release, pinned by hash, and are unpacked once:
``python -m tests.corpus``.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "13.0.0"  # of requirements.lock
SHA256 = "cdcd1ba258178f7356d74170c9a81ba4eab6a5d55748bc402a5a2a6fe6be3510"
IMAGES = Path(__file__).parent.parent / "build" / "corpus" / f"pillow-{VERSION}"


def corpus_images() -> list[Path]:
    """Every file of the corpus, in a stable order; fetched if it is not there yet."""
    fetch()
    return sorted(path for path in IMAGES.rglob("*") if path.is_file())


def fetch() -> None:
    """Download, check and unpack the images. Does nothing if they are there."""
    if IMAGES.exists():
        return
    IMAGES.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=IMAGES.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        release = ["--no-deps", "--no-binary", "pillow", f"pillow=={VERSION}"]
        subprocess.run([*pip, "download", "--dest", scratch, *release], check=True)
        archive = Path(scratch, f"pillow-{VERSION}.tar.gz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            raise RuntimeError(f"{archive.name} has the SHA-256 {digest}, not {SHA256}")
        inside = f"pillow-{VERSION}/Tests/images/"
        with tarfile.open(archive) as tar:
            wanted = [member for member in tar if member.name.startswith(inside)]
            tar.extractall(scratch, wanted, filter="data")
        try:
            Path(scratch, inside).rename(IMAGES)  # at once, so that nobody sees half a corpus
        except OSError:
            if not IMAGES.exists():  # no other test run was faster
                raise
        shutil.rmtree(Path(scratch, f"pillow-{VERSION}"))


if __name__ == "__main__":
    fetch()
