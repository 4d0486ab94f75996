"""Evaluate a checkpoint or samples, and write the results. Implements ddpm-evaluate."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_cli.checkpoints.loading import Trained, load_guide, load_trained
from ddpm_cli.checkpoints.run_folder import RunFolder, new_folder
from ddpm_cli.config import MIN_SAMPLES, Dataset, EvaluateConfig, ImageDataset
from ddpm_cli.data.sources import load_examples, moved
from ddpm_cli.data.table import Examples, chosen, numbered_by
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import precision_name, resolve_device, resolve_precision
from ddpm_cli.errors import UserError, check
from ddpm_cli.evaluation.neighbours import nearest, neighbours_picture
from ddpm_cli.evaluation.nll import NLL_N, bound
from ddpm_cli.evaluation.record import append, to_json
from ddpm_cli.evaluation.samples import DEFAULT_N, GeneratedSamples, read_sample_images
from ddpm_cli.files import cache_folder, write
from ddpm_cli.images.plots import save_bound_plot
from ddpm_cli.images.png_gif import grid, save_png
from ddpm_cli.sampling.build import build_denoiser, compile_for_inference
from ddpm_cli.sampling.sample_generator import generator_of
from ddpm_cli.tracking.terminal import status

if TYPE_CHECKING:
    from ddpm_cli.evaluation.comparison import Comparison, SampleEvaluator  # needs torch-fidelity, which is optional

log = logging.getLogger(__name__)

PACKAGES = ("ddpm-cli", "torch", "torch-fidelity")
"""Packages whose versions are recorded."""
MANY_SAMPLES = 10_000
"""Samples that are drawn in bf16 by default, if the device is a GPU that has it."""
ROWS, COLUMNS = 8, 7
"""Samples and their nearest images in neighbours.png."""


def evaluate(config: EvaluateConfig, folder: Path, command: str) -> dict[str, Any]:
    """Evaluate a checkpoint or samples, write the results to `folder` and return what evaluation.json contains.

    Several processes share the network calls; rank 0 computes the metrics and writes, others return an empty dict.
    """
    started = time.perf_counter()
    with status("loading the checkpoint"):
        precision = config.precision or "fp32"
        trained = load_trained(config.ckpt, config.weights, config.device, precision) if config.ckpt else None
    dataset = trained.config.dataset if trained else config.dataset
    assert dataset is not None  # the config was checked
    dataset = moved(dataset, config.root)
    if not collectives.is_rank_zero():
        _draw_share(config, trained, dataset)
        return {}
    results = _results(config, trained, dataset, folder)
    record = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        **_subject(config, trained),
        "dataset": dataset.name,
        **{key: getattr(config, key) for key in ("split", "seed", "batch_size")},
        **results,
        "seconds": time.perf_counter() - started,
        "versions": {package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))},
    }
    write(folder / "evaluation.json", f"{to_json(record, indent=2)}\n".encode())
    log.info("%s in %s", " ".join(sorted(path.name for path in folder.iterdir())), folder)
    run = RunFolder.of(trained.path) if trained else None
    if run is not None and run.notes.is_dir():
        append(record, run.path)
    return record


def _precision_of_samples(config: EvaluateConfig, n: int, device: torch.device) -> str:
    """Return the precision in which n samples are drawn: by default fp32, and bf16 for many on a GPU that has it."""
    many = n >= MANY_SAMPLES and device.type == "cuda"
    return precision_name(config.precision or ("auto" if many else "fp32"), device)


def _results(config: EvaluateConfig, trained: Trained | None, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Return all measurements. Missing data and packages are reported before `folder` is created."""
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


def _draw_share(config: EvaluateConfig, trained: Trained | None, dataset: Dataset) -> None:
    """Do the share of a rank other than 0 in the network calls of `_results`."""

    if trained and config.distances:
        deque(_batches(config, trained, dataset), maxlen=0)
    if trained and "nll" in config.metrics:
        bound(trained, _examples(config, trained, dataset), config.batch_size, config.seed, config.compile)


def _subject(config: EvaluateConfig, trained: Trained | None) -> dict[str, Any]:
    """Return the keys that say what was evaluated."""
    if trained is None:
        return {"samples": str(Path(str(config.samples)).expanduser().absolute())}
    return {"ckpt": str(trained.path.absolute()), "step": trained.step, "weights": config.weights}


def _batches(config: EvaluateConfig, trained: Trained | None, dataset: Dataset) -> GeneratedSamples | Iterator[Tensor]:
    """Return the samples, which are drawn from the network or read from files in random order. Raise `UserError`."""

    if not isinstance(dataset, ImageDataset):
        raise UserError(f"metrics={config.distances}: compare images, and dataset={dataset.name} has points; use [nll]")
    if trained:
        return _generated(config, trained, config.n or DEFAULT_N[_features(config, dataset)])
    found = read_sample_images(str(config.samples), dataset, cache_folder())
    check(len(found) >= MIN_SAMPLES, "samples", config.samples, f"at least {MIN_SAMPLES} images")
    order = chosen(len(found), config.n or len(found))
    return (found[part] for part in order.split(config.batch_size))  # may be larger than the memory


def _generated(config: EvaluateConfig, trained: Trained, n: int) -> GeneratedSamples:
    precision = _precision_of_samples(config, n, trained.device)
    dtype = resolve_precision(precision, trained.device)
    denoiser = build_denoiser(trained.config, trained.network, trained.device, dtype)
    generator = generator_of(
        replace(trained, denoiser=denoiser),
        config.sampler,
        config.variance,
        config.guidance_scale,
        config.sampler_changes,
        config.guidance,
        load_guide(config.guidance.guide, config.device, precision),
    )
    compile_for_inference(trained.network, trained.device, config.compile, n, config.batch_size, generator.calls)
    return GeneratedSamples(generator, n, config.seed, config.batch_size)


def _evaluator(config: EvaluateConfig, trained: Trained | None, dataset: Dataset) -> "SampleEvaluator":
    from ddpm_cli.evaluation.comparison import SampleEvaluator
    from ddpm_cli.evaluation.fidelity import read_statistics

    with status("reading the dataset"):
        splits = {name: load_examples(dataset, name == "train") for name in ("train", "test")}
    device = trained.device if trained else resolve_device(config.device)
    statistics = read_statistics(config.reference) if config.reference else None
    return SampleEvaluator(splits, config.split, config.distances, _features(config, dataset), device, statistics)


def _features(config: EvaluateConfig, dataset: Dataset) -> str:
    """Return the network whose features are compared. Inception was trained on photographs, not on gray images."""
    if config.features != "auto":
        return config.features
    if config.reference is not None:
        return "inception"
    return "classifier" if dataset.shape[0] == 1 else "inception"


def _compared(
    config: EvaluateConfig, evaluator: "SampleEvaluator", batches: GeneratedSamples | Iterator[Tensor], folder: Path
) -> dict[str, Any]:
    """Compare the samples with the data; write neighbours.png and samples.png."""

    comparison = evaluator.compare(batches, config.seed)
    save_png(grid(comparison.first), folder / "samples.png")
    splits = evaluator.splits
    distances = _neighbours(comparison.first, splits["train"].values, splits["test"].values, folder)
    _log_comparison(comparison, distances)
    return {
        "metrics": comparison.metrics,
        "n": comparison.n,
        "features": evaluator.features,
        "data": evaluator.fingerprints[0],
        **({} if config.reference is None else {"reference": str(Path(config.reference).expanduser().absolute())}),
        **(_sampling(config, batches) if isinstance(batches, GeneratedSamples) else {}),
        "intervals": comparison.intervals,
        "floor": comparison.floor,
        "floor_n": comparison.floor_n,
        "classifier": comparison.classifier,
        "nearest": distances,
    }


def _sampling(config: EvaluateConfig, drawn: GeneratedSamples) -> dict[str, Any]:
    generator, rule = drawn.generator, drawn.generator.rule
    return {
        "precision": _precision_of_samples(config, drawn.n, generator.device),
        "sampler": asdict(generator.sampler),
        "variance": generator.denoiser.variance,
        "guidance_scale": rule.scale,
        "guidance": {
            "interval": None if rule.interval == (0.0, math.inf) else list(rule.interval),
            "rescale": rule.rescale,
            "guide": config.guidance.guide,
        },
        "nfe": drawn.nfe,
    }


def _neighbours(samples: Tensor, train: Tensor, test: Tensor, folder: Path) -> dict[str, float]:
    """Write neighbours.png; return the median distance (in 0..255) of samples and test images to the training set."""

    with status("searching the nearest training images"):
        distances, places = nearest(samples, train, COLUMNS)
        real, _ = nearest(test[chosen(len(test), len(samples))], train, 1)
    save_png(neighbours_picture(samples[:ROWS], train, places[:ROWS]), folder / "neighbours.png")
    return {"samples": distances[:, 0].median().item(), "test": real.median().item()}


def _log_comparison(comparison: "Comparison", distances: Mapping[str, float]) -> None:
    for name, value in comparison.metrics.items():
        if name.endswith("_std"):
            continue
        low, high = comparison.intervals.get(name, (None, None))
        spread = "" if low is None else f" (95% interval of the mean at this n: {low:.4g} to {high:.4g})"
        log.info("%s %.4g%s; floor %.4g", name, value, spread, comparison.floor[name])
    if comparison.classifier:
        counts = ", ".join(f"{name} {count}" for name, count in comparison.classifier["classes"].items())
        log.info("classes found: %s; mean confidence %.2f", counts, comparison.classifier["confidence"])
    log.info(
        "nearest training image: %.1f from a sample, %.1f from a test image", distances["samples"], distances["test"]
    )


def _examples(config: EvaluateConfig, trained: Trained, dataset: Dataset) -> Examples:
    """Return the images for nll. Raise `UserError` if some are of classes that the network was not trained on."""
    examples = load_examples(dataset, config.split == "train", config.n or NLL_N)
    if not trained.classes:
        return examples
    return numbered_by(trained.classes, examples, f"split={config.split}: this split", "the network was trained on")


def _bound(config: EvaluateConfig, trained: Trained, examples: Examples, folder: Path) -> tuple[float, dict[str, Any]]:
    """Return the bound in bits per dimension and its parts; write nll.csv and nll.png."""

    found = bound(trained, examples, config.batch_size, config.seed, config.compile)
    assert found is not None  # rank 0
    lines = ["t,bits_per_dim", *(f"{t},{x:.8g}" for t, x in enumerate(found.terms)), ""]
    write(folder / "nll.csv", "\n".join(lines).encode())
    save_bound_plot(found.terms, folder / "nll.png")
    parts = {
        "n": len(examples),
        "precision": precision_name(config.precision or "fp32", trained.device),
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
