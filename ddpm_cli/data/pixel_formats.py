"""What Pillow leaves undone for some bit depths: levels and transparent colours in the units of the decoded pixels."""

from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

PHOTOMETRIC = 262
"""Tag of TIFF that says what the levels mean; WHITE_IS_ZERO is one of its values."""
WHITE_IS_ZERO = 0
SCALES = {"L;2": 85, "L;4": 17}
"""Levels of 8 bits for each level of a gray PNG with 2 or 4 bits, by Pillow's name of its pixels."""
DEEP_RGB, SWAPPED_RGB = "RGB;16B", "RGB;16L"


def correct_levels(opened: ImageFile) -> None:
    """Correct an image that was opened and not yet decoded. Raise the exceptions of Pillow.

    - The transparent level of a gray PNG with 2 or 4 bits becomes one of the 8 bits that Pillow expands its pixels to.
    - Pixels of the transparent colour of an RGB PNG with 16 bits become white. Pillow keeps the upper 8 bits only,
      which other colours share.
    - 16-bit levels of a TIFF for which 0 is white are inverted, as Pillow does for fewer bits.
    """
    pixels = str(opened.tile[0].args) if opened.format == "PNG" and opened.tile else ""
    clear = opened.info.get("transparency")
    if pixels in SCALES and isinstance(clear, int):
        opened.info["transparency"] = clear * SCALES[pixels]
    elif pixels == DEEP_RGB and isinstance(clear, tuple):
        mask = Image.fromarray((_deep_pixels(opened) == np.array(clear)).all(-1))
        del opened.info["transparency"]
        opened.paste("white", mask=mask)
    elif opened.mode == "I;16" and opened.format == "TIFF" and _is_white_zero(opened):
        opened.paste(Image.fromarray(65535 - np.asarray(opened, np.uint16)))


def _is_white_zero(opened: Image.Image) -> bool:
    return isinstance(opened, TiffImageFile) and opened.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _deep_pixels(opened: ImageFile) -> np.ndarray:
    """Return the pixels of an RGB PNG with 16 bits as (H, W, 3) int64.

    Pillow drops the second byte of each level, and the first one if it is told that the second one is more significant.
    """
    assert opened.fp is not None  # not decoded yet
    place = opened.fp.tell()  # from where Pillow goes on
    opened.fp.seek(0)
    again = Image.open(BytesIO(opened.fp.read()), formats=["PNG"])
    opened.fp.seek(place)
    again.tile = [again.tile[0]._replace(args=SWAPPED_RGB)]
    return 256 * np.asarray(opened, np.int64) + np.asarray(again, np.int64)
