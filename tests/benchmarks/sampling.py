"""3. Sampling 64 images: the samplers of ddpm-cli and the text's loop over all timesteps."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ddpm_cli.distributed.devices import resolve_precision
from ddpm_cli.sampling.build import build_denoiser, network_of
from ddpm_cli.sampling.sample_generator import SampleGenerator
from tests.benchmarks.measure import Spread, alternate, rate, spread, times_faster
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup
from tests.benchmarks.systems import has_bf16
from tests.benchmarks.systems.ours import CPU, composed
from tests.benchmarks.systems.reference import reference_steps
from tests.benchmarks.worker import Worker

IMAGES = 64
TIMED = 6
"""Number of evenly spaced steps that are timed. The notes report whether their durations differ."""
SAMPLERS = {"DPM-Solver++ 20": ("dpmpp_2m", 300, 20), "DDIM 50": ("ddim", 300, 50)} | {
    f"DDPM T={timesteps}": ("ddpm", timesteps, timesteps) for timesteps in (300, 1000)
}
LOOPS = {f"the text's loop, T={timesteps}": timesteps for timesteps in (300, 1000)}


def our_steps(sampler: str, timesteps: int, precision: str) -> Iterator[Any]:
    """Yield `TIMED` sampling steps, as in ddpm-sample, of the untrained network of experiment=annotated."""
    typed = [f"schedule.timesteps={timesteps}", f"sampler={sampler}", f"sampler.steps={TIMED}"]
    config = composed("experiment=annotated", *typed)
    network = network_of(config, []).eval().requires_grad_(False)
    denoiser = build_denoiser(config, network, CPU, resolve_precision(precision, CPU))
    generator = SampleGenerator(denoiser, config.sampler, config.dataset.shape, CPU)
    return generator.steps(0, [0] * IMAGES, range(IMAGES))


def samplings() -> dict[str, Any]:
    """Return, by name, a function that starts sampling and the number of steps; ours in fp32 (the default) and bf16."""
    found: dict[str, Any] = {
        name: (partial(reference_steps, timesteps, IMAGES, TIMED), timesteps) for name, timesteps in LOOPS.items()
    }
    for precision in ["fp32", "bf16"] if has_bf16() else ["fp32"]:
        for name, (sampler, timesteps, steps) in SAMPLERS.items():
            found[f"{name} {precision}"] = (partial(our_steps, sampler, timesteps, precision), steps)
    return found


def seconds_of_steps(_: object, begin: Any) -> list[float]:
    """Return the seconds of each sampling step."""
    steps = begin()
    found: list[float] = []
    with torch.inference_mode():
        while True:
            started = time.perf_counter()
            if next(steps, None) is None:
                return found
            found.append(time.perf_counter() - started)


def run(setup: Setup) -> Section:
    """Measure the images per second of each sampler and the speed-up over the text's loops."""
    every: dict[str, list[list[float]]] = {name: [] for name in samplings()}
    with Worker(object, setup.threads) as worker:

        def total_seconds(name: str, begin: Any, steps: int) -> float:
            every[name].append(worker.call(seconds_of_steps, begin))
            return steps * sum(every[name][-1]) / len(every[name][-1])

        works = {name: partial(total_seconds, name, *work) for name, work in samplings().items()}
        seconds = alternate(works, max(3, setup.rounds // 2), 1, "sampling")
    columns = ["64 images by", "seconds", "images/s", *(f"times {name}" for name in LOOPS)]
    rows = []
    for name, found in seconds.items():
        faster = [format_spread(times_faster(found, seconds[loop])) for loop in LOOPS]
        rows.append([name, format_spread(spread(found)), format_spread(rate(IMAGES, found)), *faster])
    drift = {name: _drift(steps) for name, steps in every.items()}
    worst = max(drift.values(), key=lambda found: abs(found.median - 1))
    notes = [
        f"{TIMED} evenly spaced steps are timed and scaled to the number of steps. The last one takes "
        f"{format_spread(worst)} times as long as the first in the worst case.",
        "The text's loop is in float32 and keeps all steps for its animation. fp32 is the default of ddpm-sample, and "
        "bf16 is its precision=auto.",
    ]
    raw = {"seconds": seconds, "steps": every, "timed": TIMED}
    if setup.ckpt:
        notes += (measured := _qualities(setup))["notes"]
        raw["quality"] = measured["raw"]
    return Section("Sampling", columns, rows, notes, raw)


def _drift(rounds: list[list[float]]) -> Spread:
    return spread([steps[-1] / steps[0] for steps in rounds[1:]])


def _qualities(setup: Setup) -> dict[str, Any]:
    """Return the distance of samples of the checkpoint for each sampler. DDPM uses all its timesteps."""
    from tests.benchmarks.distance import distance

    found = {
        f"{sampler} {steps or 'T'}": distance(str(setup.ckpt), sampler, steps, setup.n)
        for sampler, steps in (("dpmpp_2m", 20), ("ddim", 50), ("ddpm", None))
    }
    notes = [
        f"{name}: fd_classifier {one.value:.3f} ({one.low:.3f} to {one.high:.3f}), {setup.n} samples of {setup.ckpt}."
        for name, one in found.items()
    ]
    return {"notes": notes, "raw": {name: vars(one) for name, one in found.items()}}
