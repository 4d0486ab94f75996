"""ddpm-train on a disk that is full when the first picture of samples is to be written."""

import resource
from pathlib import Path

from PIL import Image

from ddpm_cli.cli import train
from ddpm_cli.tracking import run_writer

LEFT = 100  # bytes


def main() -> None:
    save_png = run_writer.save_png

    def cramped(image: Image.Image, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT, LEFT))
        save_png(image, path)

    run_writer.save_png = cramped  # type: ignore[attr-defined]
    train.main()
