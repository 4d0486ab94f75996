"""Folders of images of 8x8 pixels, each class of another gray."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

GRAY = {"a": 40, "b": 130, "c": 220}


def write_images(root: Path, counts: Mapping[str, int]) -> Path:
    """Write images to folders such as train/a, whose last letter gives the gray; return `root`."""
    generator = np.random.default_rng(0)
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = GRAY.get(place[-1], 90) + generator.integers(-20, 20, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(root / place / f"{i:02}.png")
    return root


def folder_overrides(root: Path, *more: str) -> list[str]:
    """Return the overrides that name a folder as the dataset."""
    return ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "dataset.channels=1", *more]
