"""Compare the speed of ddpm-cli with the alternatives: python -m tests.benchmarks [what]."""

import argparse
import os
import sys
import tempfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks import input as input_
from tests.benchmarks import memory, quality, report, sampling, scale, sharing, startup, step
from tests.benchmarks.data import prepare
from tests.benchmarks.setup import Setup

SECTIONS = {
    "step": step.run,
    "input": input_.run,
    "sampling": sampling.run,
    "startup": startup.run,
    "memory": memory.run,
    "scale": scale.run,
    "sharing": sharing.run,
}
EXTRAS = ("denoising_diffusion_pytorch", "diffusers", "accelerate")
COMPARE_ALL = {"step", "memory"}
"""Sections that need `EXTRAS`."""


def main() -> None:
    """Run the requested benchmarks; print the results and write them as JSON and Markdown."""
    args = _arguments()
    names = list(SECTIONS) if args.what == "all" else [args.what]
    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing and COMPARE_ALL & set(names):
        sys.exit(f"benchmarks: {', '.join(missing)} missing; pip install -e '.[bench]'")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # inherited by child processes
    with tempfile.TemporaryDirectory() as data:
        data_name = prepare(Path(data))
        setup = Setup(Path(data), args.threads, args.rounds, args.batch_size, args.ckpt, args.samples)
        about = report.machine(args.threads)
        print(report.headline(about, data_name))
        stem = args.out / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        done: dict[str, report.Section] = {}
        for name in names:
            is_quality = name == "quality"
            done[name] = quality.run(setup, args.out, args.recipes) if is_quality else SECTIONS[name](setup)
            print(report.markdown(done[name]), flush=True)
            report.save(stem, about, data_name, done)
        print(f"{stem}.json, {stem}.md")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "what",
        nargs="?",
        default="all",
        choices=[*SECTIONS, "all", "quality"],
        help="the benchmark; all: all of them except quality, which takes hours",
    )
    add("--rounds", type=int, default=5, help="number of rounds; each system runs once in a round")
    add("--threads", type=int, default=torch.get_num_threads(), help="number of threads of each system")
    add("--batch-size", type=int, default=128, help="images per step")
    add(
        "--out",
        type=Path,
        default=None,
        help="output folder; default: outputs/bench, or outputs/bench/quality for quality",
    )
    add("--ckpt", default=None, help="sampling: also measure samples of this checkpoint")
    add("--samples", type=int, default=2000, help="number of samples for a distance")
    add("--recipes", nargs="+", default=list(quality.RECIPES), choices=list(quality.RECIPES), help="recipes of quality")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1 or args.batch_size < 1:
        parser.error("--rounds, --threads and --batch-size are at least 1")
    args.out = args.out or Path("outputs/bench/quality" if args.what == "quality" else "outputs/bench")
    return args


if __name__ == "__main__":
    main()
