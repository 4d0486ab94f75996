"""1. A training step: the same network in a plain implementation, and the most similar networks of two libraries."""

from functools import partial

from tests.benchmarks.measure import alternate, rate, spread, times_faster
from tests.benchmarks.report import Section, format_spread, plain
from tests.benchmarks.setup import Setup
from tests.benchmarks.systems import OURS, REFERENCE, System, flops, parameters, systems
from tests.benchmarks.worker import Worker, Workers

WARM_UP = 2


def one_step(system: System) -> None:
    system.step()


def network_size(system: System) -> int:
    return parameters(system.network)


def run(setup: Setup) -> Section:
    """Measure images per second and achieved FLOP/s of each system, and the speed-up of ddpm-cli in both."""
    with Workers() as workers:
        found = workers.started(systems(setup.data, setup.batch_size), setup.threads)
        sizes = {name: worker.call(network_size) for name, worker in found.items()}
        work = {name: worker.call(flops) for name, worker in found.items()}
        seconds = alternate(_steps(found), setup.rounds, WARM_UP, "step")
    best = _best(list(found), {name: work[name] / spread(seconds[name]).median for name in found})
    ours = best[OURS]
    rows, ratios = [], {}
    for name in found:
        images = times_faster(seconds[ours], seconds[name])
        by_flops = times_faster([s / work[ours] for s in seconds[ours]], [s / work[name] for s in seconds[name]])
        ratios[name] = {"images": images.median, "flops": by_flops.median}
        row = [
            f"**{name}**" if name in best.values() else name,
            f"{sizes[name] / 1e6:.2f}M",
            plain(work[name] / setup.batch_size / 1e9),
            format_spread(rate(setup.batch_size, seconds[name])),
            format_spread(rate(work[name] / 1e9, seconds[name])),
            format_spread(images),
            format_spread(by_flops),
        ]
        rows.append(row)
    columns = [
        "system",
        "parameters",
        "GFLOP an image, both ways",
        "images/s",
        "GFLOP/s",
        "ours: images/s times",
        "FLOP/s times",
    ]
    notes = [
        f"Batches of {setup.batch_size}, from the loader to the average, including reading the loss; "
        f"{setup.rounds} rounds in which each system makes a step: medians and quartiles. "
        "Bold: the faster precision of each system.",
        f"Goal: 3 times the reference. Result: {ratios[REFERENCE]['images']:.2f}.",
        *(
            f"Goal: 1.5 times {name} in FLOP/s. Result: {ratios[one]['flops']:.2f}."
            for name, one in best.items()
            if name not in (OURS, REFERENCE)
        ),
    ]
    raw = {
        "batch_size": setup.batch_size,
        "parameters": sizes,
        "flops": work,
        "seconds": seconds,
        "best": best,
        "times": ratios,
    }
    return Section("Training step", columns, rows, notes, raw)


def _steps(workers: dict[str, Worker]) -> dict[str, "partial[float]"]:
    return {name: partial(worker.seconds, one_step) for name, worker in workers.items()}


def _best(names: list[str], speed: dict[str, float]) -> dict[str, str]:
    """Return the name of the faster precision for each system."""
    best: dict[str, str] = {}
    for name in names:
        plain_name = name.split(" ")[0]
        if plain_name not in best or speed[name] > speed[best[plain_name]]:
            best[plain_name] = name
    return best
