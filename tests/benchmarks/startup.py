"""5. Start-up: the time from a command to its result, in new processes."""

import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.benchmarks.data import overrides
from tests.benchmarks.measure import alternate, clock, spread
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup

TRAIN = [sys.executable, "-c", "from ddpm_cli.cli.train import main; main()"]
TIMEOUT = 300
"""In seconds."""
EXAMPLE = Path(__file__).parents[2] / "docs/examples/plugin/ddpm_extras"
NAMES = re.compile(r"\b(ddpm_extras|midpoint|npz_file|residual|mean_distance)\b")
"""Names in the example of a plugin, which two plugins cannot share."""
PLUGINS = 3


def seconds_to_exit(words: list[str], plugins: str = "") -> float:
    """Return the seconds until a command has ended. `plugins` are the paths of plugins to load."""
    environment = os.environ | {"DDPM_PLUGINS": plugins}
    return clock(partial(subprocess.run, words, check=True, capture_output=True, env=environment))


def write_plugins(folder: Path) -> str:
    """Write plugins with a sampler, a dataset, a network and a metric each, and return their paths."""
    paths = [folder / f"ddpm_extras_{i}" for i in range(PLUGINS)]
    for i, path in enumerate(paths):
        for file in [*EXAMPLE.rglob("*.py"), *EXAMPLE.rglob("*.yaml")]:
            written = path / NAMES.sub(rf"\1_{i}", str(file.relative_to(EXAMPLE)))
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(NAMES.sub(rf"\1_{i}", file.read_text()))
    return os.pathsep.join(map(str, paths))


def seconds_to_first_step(data: Path) -> float:
    """Return the seconds until metrics.csv has its first row, after one step of 128 images."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.csv")
        typed = ["experiment=annotated", *overrides(data), "train.log_every=1", f"out={metrics.parent}", "device=cpu"]
        started = time.perf_counter()
        process = subprocess.Popen([*TRAIN, *typed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
                if process.poll() is not None or time.perf_counter() - started > TIMEOUT:
                    raise RuntimeError(f"ddpm-train {' '.join(typed)}: did not make a step")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def run(setup: Setup) -> Section:
    """Measure the seconds of each command."""
    plugins = write_plugins(setup.data / "plugins")
    works = {
        'python -c "pass"': partial(seconds_to_exit, [sys.executable, "-c", "pass"]),
        'python -c "import torch"': partial(seconds_to_exit, [sys.executable, "-c", "import torch"]),
        "ddpm-train --help": partial(seconds_to_exit, [*TRAIN, "--help"]),
        "ddpm-train --help, with three plugins": partial(seconds_to_exit, [*TRAIN, "--help"], plugins),
        "ddpm-train --cfg job": partial(seconds_to_exit, [*TRAIN, "--cfg", "job"]),
        "ddpm-train experiment=annotated, its first step done": partial(seconds_to_first_step, setup.data),
    }
    seconds = alternate(works, setup.rounds, 1, "start-up")
    rows = [[name, format_spread(spread(found))] for name, found in seconds.items()]
    notes = [
        f"New processes, {setup.rounds} rounds after one that warms the disk cache.",
        "Goal: --help under 0.7 s, also with three plugins. Result: "
        f"{spread(seconds['ddpm-train --help']).median:.2f} s and "
        f"{spread(seconds['ddpm-train --help, with three plugins']).median:.2f} s.",
    ]
    return Section("Start-up", ["command", "seconds"], rows, notes, {"seconds": seconds})
