"""Results as Markdown and JSON, with a description of the machine."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ddpm_cli.files import write
from tests.benchmarks.measure import Spread
from tests.benchmarks.systems import has_bf16

PACKAGES = ("ddpm-cli", "torch", "torchvision", "denoising-diffusion-pytorch", "diffusers", "accelerate")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Flags of /proc/cpuinfo that affect the speed."""


@dataclass(frozen=True)
class Section:
    """The table of a benchmark, the notes below it, and all its raw values."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    raw: dict[str, Any]


def format_spread(found: Spread, digits: int = 3) -> str:
    """Format the median and the quartiles as `81.2 (79.9 to 82.4)`."""
    median, low, high = (plain(value, digits) for value in (found.median, found.low, found.high))
    return median if low == high else f"{median} ({low} to {high})"


def plain(value: float, digits: int = 3) -> str:
    """Format a value with `digits` significant digits, without an exponent."""
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text


def markdown(section: Section) -> str:
    """Return a heading, a table with aligned columns, and the notes."""
    lines = [list(section.columns), *map(list, section.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(section.columns))]
    cells = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join("-" * width for width in widths)
    table = "\n".join(f"| {line} |" for line in [cells[0], rule, *cells[1:]])
    notes = "".join(f"- {note}\n" for note in section.notes)
    return f"## {section.title}\n\n{table}\n" + (f"\n{notes}" if notes else "")


def machine(threads: int) -> dict[str, Any]:
    """Return a description of the machine."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        cpuinfo = ""
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    listed = re.search(r"(?:flags|Features)\s*: (.*)", cpuinfo)
    flags = listed[1].split() if listed else []
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": threads,
        "load_at_start": os.getloadavg()[0],
        "bf16": has_bf16(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def headline(about: dict[str, Any], data: str) -> str:
    """Return a paragraph about the machine."""
    packages = ", ".join(f"{name} {found}" for name, found in about["packages"].items())
    return (
        f"{about['cores']} cores of {about['cpu']} ({' '.join(about['flags'])}), {about['memory_gib']} GiB, "
        f"{about['threads']} threads, load {about['load_at_start']:.2f} at the start; Python {about['python']}, "
        f"{packages}. Data: {data}.\n"
    )


def save(stem: Path, about: dict[str, Any], data: str, sections: dict[str, Section]) -> None:
    """Write <stem>.json and <stem>.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": about, "data": data, **{name: asdict(section) for name, section in sections.items()}}
    write(stem.with_suffix(".json"), (json.dumps(found, indent=2) + "\n").encode())
    text = "\n".join([headline(about, data), *map(markdown, sections.values())])
    write(stem.with_suffix(".md"), text.encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
