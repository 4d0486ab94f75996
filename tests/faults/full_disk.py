"""Run ddpm-train on a disk that becomes full when the first sample grid is written."""

import resource
from pathlib import Path

from PIL import Image

from ddpm_cli.cli import train
from ddpm_cli.tracking import run_writer

MAX_FILE_SIZE = 100  # bytes


def main() -> None:
    save_png = run_writer.save_png

    def limited(image: Image.Image, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_SIZE, MAX_FILE_SIZE))
        save_png(image, path)

    run_writer.save_png = limited  # type: ignore[attr-defined]
    train.main()
