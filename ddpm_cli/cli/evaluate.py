"""ddpm-evaluate: how good a checkpoint or a set of samples is, in numbers."""

import logging
import shlex
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.cli.app import launch, worker_group
from ddpm_cli.cli.overrides import check_checkpoint
from ddpm_cli.config import FEWEST, Dataset, EvaluateConfig, ImageDataset
from ddpm_cli.distributed.launch import run_distributed
from ddpm_cli.errors import UserError, one_of
from ddpm_cli.errors import check as check_value

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.checkpoints.loading import Trained
    from ddpm_cli.evaluation.comparison import Comparison, SampleEvaluator
    from ddpm_cli.evaluation.samples import GeneratedSamples

log = logging.getLogger(__name__)

USAGE = """
ddpm-evaluate measures a checkpoint of ddpm-train, or samples, against the data.

  ddpm-evaluate ckpt=outputs/train/fashion_mnist/… metrics=[nll] n=64
  ddpm-evaluate ckpt=… metrics=[fid,kid,is,prc,nll] n=50000
  ddpm-evaluate ckpt=… features=classifier                           without Inception's weights
  ddpm-evaluate samples=pictures/ dataset=fashion_mnist
  ddpm-evaluate ckpt=… -m sampler=ddpm,ddim,dpmpp_2m sampler.steps=10,20,50,100

nll: the variational bound on the likelihood of n images, in bits per dimension, exact but for the noise drawn;
every timestep is computed, so an image takes T calls of the network.
fid, kid, is (inception score), prc (precision and recall): of n samples, by torch-fidelity. Beside them stands their
floor: the same figures of n real images of the other split.
"""

PACKAGES = ("ddpm-cli", "torch", "torch-fidelity")
ROWS, COLUMNS = 8, 7
"""Of neighbours.png."""


def main() -> None:
    """The console script."""
    launch("evaluate", USAGE, EvaluateConfig, check, run, after_sweep=after_sweep)


def after_sweep(folder: Path) -> None:
    """Write tradeoff.csv and tradeoff.png of a sweep's evaluations."""
    from ddpm_cli.evaluation.tradeoff import save_tradeoff

    save_tradeoff(folder)


def check(config: EvaluateConfig) -> None:
    """Raise `UserError` for what can be known before anything is read."""
    if config.samples is None:
        check_checkpoint(config)
    if config.distances and find_spec("torch_fidelity") is None:
        raise UserError(f"metrics={config.distances}: need torch-fidelity; pip install 'ddpm-cli[eval]'")


def run(config: EvaluateConfig, folder: Path) -> None:
    """Write evaluation.json and pictures of it into `folder`, which must be new or empty, and a line into the run's
    evaluations.jsonl.
    """
    command = shlex.join(["ddpm-evaluate", *HydraConfig.get().overrides.task])
    run_distributed(evaluate, (config, folder, command), worker_group(config))


def evaluate(config: EvaluateConfig, folder: Path, command: str) -> None:
    """What each of the processes does that share the calls of the network; the main one judges and writes."""
    from ddpm_cli.checkpoints.loading import load_trained
    from ddpm_cli.data.sources import moved
    from ddpm_cli.distributed import collectives
    from ddpm_cli.evaluation.record import append, run_of, to_json
    from ddpm_cli.files import write

    started = time.perf_counter()
    trained = load_trained(config.ckpt, config.weights, config.device, config.precision) if config.ckpt else None
    dataset = trained.config.dataset if trained else config.dataset
    assert dataset is not None  # the config was checked
    dataset = moved(dataset, config.root)
    if not collectives.is_rank_zero():
        _help(config, trained, dataset)
        return
    found = _found(config, trained, dataset, folder)
    record = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        **_subject(config, trained),
        "dataset": dataset.name,
        **{key: getattr(config, key) for key in ("split", "seed", "precision", "batch_size")},
        **found,
        "seconds": time.perf_counter() - started,
        "versions": {package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))},
    }
    write(folder / "evaluation.json", f"{to_json(record, indent=2)}\n".encode())
    log.info("%s in %s", " ".join(sorted(path.name for path in folder.iterdir())), folder)
    if trained and (of := run_of(trained.path)):
        append(record, of)


def _found(config: EvaluateConfig, trained: "Trained | None", dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Everything measured; what is missing is known before `folder` is made."""
    examples = _examples(config, trained, dataset) if trained and "nll" in config.metrics else None
    batches = _batches(config, trained, dataset) if config.distances else None
    evaluator = _evaluator(config, trained, dataset) if config.distances else None
    new_folder(folder)
    metrics: dict[str, float] = {}
    found: dict[str, Any] = {"metrics": metrics}
    if evaluator and batches is not None:
        of_samples = _compared(config, evaluator, batches, folder)
        metrics |= of_samples.pop("metrics")
        found |= of_samples
    if trained and examples is not None:
        metrics["nll"], found["nll"] = _bound(config, trained, examples, folder)
    return found


def _help(config: EvaluateConfig, trained: "Trained | None", dataset: Dataset) -> None:
    """The share of another process than the main one in what `_found` does."""
    from ddpm_cli.evaluation.nll import bound

    if trained and config.distances:
        deque(_batches(config, trained, dataset), maxlen=0)
    if trained and "nll" in config.metrics:
        bound(trained, _examples(config, trained, dataset), config.batch_size, config.seed)


def _subject(config: EvaluateConfig, trained: "Trained | None") -> dict[str, Any]:
    """What is judged."""
    if trained is None:
        return {"samples": str(Path(str(config.samples)).expanduser().absolute())}
    return {"ckpt": str(trained.path.absolute()), "step": trained.step, "weights": config.weights}


def _batches(
    config: EvaluateConfig, trained: "Trained | None", dataset: Dataset
) -> "GeneratedSamples | tuple[Tensor, ...]":
    """The samples: to be drawn, or given."""
    from ddpm_cli.data.sources import cache_folder
    from ddpm_cli.evaluation.samples import DEFAULT_N, GeneratedSamples, read_images
    from ddpm_cli.sampling.sample_generator import generator_of

    if not isinstance(dataset, ImageDataset):
        raise UserError(f"metrics={config.distances}: compare images, and dataset={dataset.name} has points; use [nll]")
    if trained:
        generator = generator_of(trained, config.sampler, config.variance, config.guidance_scale)
        return GeneratedSamples(
            generator, config.n or DEFAULT_N[_features(config, dataset)], config.seed, config.batch_size
        )
    found = read_images(str(config.samples), dataset, cache_folder())[: config.n]
    check_value(len(found) >= FEWEST, "samples", config.samples, f"at least {FEWEST} images")
    return found.split(config.batch_size)


def _evaluator(config: EvaluateConfig, trained: "Trained | None", dataset: Dataset) -> "SampleEvaluator":
    from ddpm_cli.data.sources import load_examples
    from ddpm_cli.distributed.devices import resolve_device
    from ddpm_cli.evaluation.comparison import SampleEvaluator

    splits = {name: load_examples(dataset, name == "train") for name in ("train", "test")}
    device = trained.device if trained else resolve_device(config.device)
    return SampleEvaluator(splits, config.split, config.distances, _features(config, dataset), device)


def _features(config: EvaluateConfig, dataset: Dataset) -> str:
    """Which network looks. Inception has seen photographs: of gray images it says little."""
    if config.features != "auto":
        return config.features
    return "classifier" if dataset.shape[0] == 1 else "inception"


def _compared(
    config: EvaluateConfig, evaluator: "SampleEvaluator", batches: "GeneratedSamples | tuple[Tensor, ...]", folder: Path
) -> dict[str, Any]:
    """The distances, and what else there is to say of the samples; neighbours.png and samples.png."""
    from ddpm_cli.evaluation.samples import GeneratedSamples
    from ddpm_cli.images.png_gif import grid, save_png

    comparison = evaluator.compare(batches, config.seed)
    save_png(grid(comparison.first), folder / "samples.png")
    nearest = _neighbours(comparison.first, evaluator.splits["train"].values, evaluator.splits["test"].values, folder)
    _say(comparison, nearest)
    return {
        "metrics": comparison.metrics,
        "n": comparison.n,
        "features": evaluator.features,
        "data": evaluator.fingerprints[0],
        **(_sampling(batches) if isinstance(batches, GeneratedSamples) else {}),
        "intervals": comparison.intervals,
        "floor": comparison.floor,
        "floor_n": comparison.floor_n,
        "classifier": comparison.classifier,
        "nearest": nearest,
    }


def _sampling(drawn: "GeneratedSamples") -> dict[str, Any]:
    generator = drawn.generator
    return {
        "sampler": asdict(generator.sampler),
        "variance": generator.denoiser.variance,
        "guidance_scale": generator.guidance_scale,
        "nfe": drawn.nfe,
    }


def _neighbours(samples: "Tensor", train: "Tensor", test: "Tensor", folder: Path) -> dict[str, float]:
    """How far samples, and as many test images, are from the nearest training image: medians, in 0..255."""
    from ddpm_cli.evaluation.neighbours import nearest, neighbours_picture
    from ddpm_cli.images.png_gif import save_png

    distances, places = nearest(samples, train, COLUMNS)
    save_png(neighbours_picture(samples[:ROWS], train, places[:ROWS]), folder / "neighbours.png")
    real, _ = nearest(test[: len(samples)], train, 1)
    return {"samples": distances[:, 0].median().item(), "test": real.median().item()}


def _say(comparison: "Comparison", nearest: Mapping[str, float]) -> None:
    for name, value in comparison.metrics.items():
        if name.endswith("_std"):
            continue
        low, high = comparison.intervals.get(name, (None, None))
        spread = "" if low is None else f" (95% between {low:.4g} and {high:.4g} at this n)"
        log.info("%s %.4g%s; floor %.4g", name, value, spread, comparison.floor[name])
    if comparison.classifier:
        counts = ", ".join(f"{name} {count}" for name, count in comparison.classifier["classes"].items())
        log.info("classes found: %s; mean confidence %.2f", counts, comparison.classifier["confidence"])
    log.info("nearest training image: %.1f from a sample, %.1f from a test image", nearest["samples"], nearest["test"])


def _examples(config: EvaluateConfig, trained: "Trained", dataset: Dataset) -> Any:
    """The images whose likelihood is bounded."""
    from ddpm_cli.data.sources import load_examples
    from ddpm_cli.evaluation.nll import NLL_N, first_examples

    examples = first_examples(load_examples(dataset, config.split == "train"), config.n or NLL_N)
    if trained.classes and examples.classes != trained.classes:
        raise UserError(
            f"split={config.split}: its classes are {one_of(examples.classes or ['unknown'])}, and those of the "
            f"network are {one_of(trained.classes)}; name another split"
        )
    return examples


def _bound(config: EvaluateConfig, trained: "Trained", examples: Any, folder: Path) -> tuple[float, dict[str, Any]]:
    """The bound in bits per dimension, and its parts; nll.csv and nll.png."""
    from ddpm_cli.evaluation.nll import bound
    from ddpm_cli.files import write
    from ddpm_cli.images.plots import save_bound_plot

    found = bound(trained, examples, config.batch_size, config.seed)
    lines = ["t,bits_per_dim", *(f"{t},{x:.8g}" for t, x in enumerate(found.terms)), ""]
    write(folder / "nll.csv", "\n".join(lines).encode())
    save_bound_plot(found.terms, folder / "nll.png")
    parts = {
        "n": len(examples),
        "standard_error": found.standard_error,
        "L_0": found.terms[0],
        "L_1_to_T-1": sum(found.terms[1:]),
        "L_T": found.prior,
    }
    log.info(
        "at most %.4f bits/dim (standard error %.4f) over %d examples of the %s split",
        found.total,
        found.standard_error,
        len(examples),
        config.split,
    )
    log.info("L_0 %.4f, L_1..T-1 %.4f, L_T %.6f", parts["L_0"], parts["L_1_to_T-1"], found.prior)
    return found.total, parts
