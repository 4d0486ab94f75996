"""Write shards with nothing but tarfile and zlib, as a program other than ddpm-import would."""

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_cli.data.sources import open_examples
from ddpm_cli.data.table import StreamedExamples
from tests.conftest import composed

COLUMNS = "name\toffset\tsize\tlabel\tcrc32"


def noise_png(seed: int, size: tuple[int, int] = (10, 8)) -> bytes:
    """Return a PNG of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_shard(tar: Path, images: Sequence[bytes], labels: Sequence[int]) -> dict[str, object]:
    """Write a shard and its index; return its entry of shards.json."""
    with tarfile.open(tar, "w") as archive:
        for i, content in enumerate(images):
            member = tarfile.TarInfo(f"{i:09}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tar) as archive:
        rows = [
            (member.name, member.offset_data, member.size, label, zlib.crc32(content))
            for member, label, content in zip(archive, labels, images, strict=True)
        ]
    lines = [COLUMNS, *("\t".join(map(str, row)) for row in rows), ""]
    tar.with_suffix(".tsv").write_text("\n".join(lines))
    return {"file": tar.name, "bytes": tar.stat().st_size, "images": len(images)}


def write_folder(root: Path, images: Sequence[bytes], classes: Sequence[str] = ("a", "b"), shards: int = 3) -> Path:
    """Write `images` to shards for training, and the first two for testing; image i has the label i % len(classes)."""
    root.mkdir()
    labels = [i % len(classes) if classes else -1 for i in range(len(images))]
    ends = [round(i * len(images) / shards) for i in range(shards + 1)]
    train = [
        write_shard(root / f"train-{i:05}.tar", images[start:end], labels[start:end])
        for i, (start, end) in enumerate(pairwise(ends))
    ]
    test = [write_shard(root / "test-00000.tar", images[:2], labels[:2])]
    manifest = {"format": 1, "classes": [*classes], "train": train, "test": test}
    (root / "shards.json").write_text(json.dumps(manifest))
    return root


def opened(root: Path, *overrides: str, train: bool = True) -> StreamedExamples:
    """Return the images of shards at 8x8 pixels."""
    config = composed("dataset=shards", f"dataset.root={root}", "dataset.image_size=8", *overrides)
    examples = open_examples(config.dataset, train)
    assert isinstance(examples, StreamedExamples)
    return examples
