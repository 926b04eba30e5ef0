"""Real photos in chosen sizes, as JPEGs that can be made new bytes again and again for next to nothing.

A service that recognises bytes it has seen answers a repeated photo without scoring it. So every photo here
has a hole of 16 bytes in its comment (COM) segment: filling it changes the hash and leaves the picture alone,
at the price of one copy. To encode a 12 MP photo anew costs more than to score it.
"""

from __future__ import annotations

import io
import secrets
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage import data

TOKEN_BYTES = 16
ASPECT = 4 / 3
QUALITY = 88
# Standard deviation of the added grain, of 255. An enlarged photo lacks fine detail and would compress
# to 0.6 bits per pixel at 12 MP; with this grain every size comes to about 2, as from a phone.
GRAIN = 5.0


@dataclass(frozen=True)
class Photo:
    """One JPEG, cut at the hole in its comment."""

    label: str
    head: bytes
    tail: bytes

    def with_token(self, token: bytes) -> bytes:
        """The JPEG with ``token`` (16 bytes) in its comment: the same token gives the same bytes."""
        if len(token) != TOKEN_BYTES:
            raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
        return b"".join((self.head, token, self.tail))

    def unique(self) -> bytes:
        """The JPEG as bytes that were never sent before."""
        return self.with_token(new_token())


def new_token() -> bytes:
    """16 random bytes, all of them hexadecimal digits, so that none can look like a JPEG marker."""
    return secrets.token_hex(TOKEN_BYTES // 2).encode()


def make_photo(megapixels: float) -> Photo:
    """A cup of coffee on a table (scikit-image's own photo), 4:3, enlarged or reduced to ``megapixels``."""
    width = max(1, round((megapixels * 1e6 * ASPECT) ** 0.5))
    height = max(1, round(width / ASPECT))
    coffee = Image.fromarray(data.coffee())
    side = round((coffee.width - coffee.height * ASPECT) / 2)
    sized = coffee.crop((side, 0, coffee.width - side, coffee.height)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = np.random.default_rng(0).standard_normal((height, width, 1), dtype=np.float32) * GRAIN
    pixels = (np.asarray(sized, dtype=np.float32) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    hole = new_token()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, comment=hole)
    head, tail = file.getvalue().split(hole)
    return Photo(f"{megapixels:g} MP", head, tail)
