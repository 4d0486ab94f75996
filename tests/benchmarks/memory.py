"""6. Memory: the peak of a training step and the size of a checkpoint."""

import tempfile
from pathlib import Path

from tests.benchmarks.report import Section
from tests.benchmarks.setup import Setup
from tests.benchmarks.step import one_step
from tests.benchmarks.systems import OURS, REFERENCE, System, systems
from tests.benchmarks.worker import Worker, peak_memory

MIB = 2**20
STEPS = 3


def resident_memory(_: object) -> int:
    """Return the resident memory of the process in bytes."""
    import psutil  # from the extra `bench`

    return int(psutil.Process().memory_info().rss)


def checkpoint_size(system: System) -> int:
    """Return the size in bytes of all files of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        system.save(Path(folder))
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def run(setup: Setup) -> Section:
    """Measure each system in a new process, one after the other."""
    before, peak, files = {}, {}, {}
    for name, build in systems(setup.data, setup.batch_size).items():
        with Worker(build, setup.threads) as worker:
            before[name] = worker.call(resident_memory)
            for _ in range(STEPS):
                worker.call(one_step)
            peak[name] = worker.call(peak_memory)
            files[name] = worker.call(checkpoint_size)
    rows = []
    for name in peak:
        step, to = peak[name] - before[name], peak[REFERENCE] - before[REFERENCE]
        sizes = [f"{size / MIB:.0f} MiB" for size in (before[name], peak[name], step)]
        rows.append(
            [name, *sizes, f"{peak[name] / peak[REFERENCE]:.2f}", f"{step / to:.2f}", f"{files[name] / MIB:.1f} MiB"]
        )
    ours = min((name for name in peak if name.startswith(OURS)), key=peak.__getitem__)
    notes = [
        f"Resident memory of a fresh process through {STEPS} steps of {setup.batch_size} images; the workers of "
        "denoising-diffusion-pytorch's loader, which are separate processes, are not included.",
        "A checkpoint contains the weights, the average and both moments of Adam. The reference has no average.",
        f"Goal: a peak of 0.6 of the reference. Result: {peak[ours] / peak[REFERENCE]:.2f} with {ours}.",
    ]
    columns = ["system", "before", "peak", "of the step", "peak to reference's", "step to reference's", "checkpoint"]
    return Section("Memory", columns, rows, notes, {"before": before, "peak": peak, "checkpoint": files})
