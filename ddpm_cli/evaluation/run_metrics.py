"""Metrics of a run: those measured while it trains, and the one that it reports to a sweeper at its end."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import rng
from ddpm_cli.checkpoints.loading import Trained, load_trained
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config import Dataset, Train, TrainConfig
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples, numbered_by, to_float
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import configure_arithmetic
from ddpm_cli.evaluation.nll import NLL_N, bound
from ddpm_cli.evaluation.record import append
from ddpm_cli.evaluation.samples import DEFAULT_N, GeneratedSamples
from ddpm_cli.sampling.build import compile_for_inference
from ddpm_cli.sampling.sample_generator import SampleGenerator, batches_with_oom_retry, generator_of
from ddpm_cli.tracking.terminal import status
from ddpm_cli.tracking.timeline import Timeline

if TYPE_CHECKING:
    from ddpm_cli.evaluation.comparison import SampleEvaluator

log = logging.getLogger(__name__)

VAL_N = 2048
"""Default number of examples for val_loss."""
SEED = 0
FEATURES = {"fd_classifier": "classifier", "fid": "inception"}
"""The features from which the metrics of samples are computed."""


def final_metric(train: Train, folder: Path, device: str) -> float:
    """Compute the metric train.report of the run in `folder`, using EMA weights in float32.

    The result is also appended to evaluations.jsonl in `folder`.
    """
    started = time.perf_counter()
    trained = load_trained(str(folder), "ema", device, _precision(train))
    value, n = _compute(str(train.report), trained, train.report_n, train.batch_size)
    record = {
        **_subject(trained.config, folder, trained.step),
        "command": f"ddpm-train train.report={train.report} train.report_n={train.report_n}",
        "n": n,
        "metrics": {train.report: value},
        "seconds": time.perf_counter() - started,
    }
    append(record, folder)
    log.info("%s %.6g", train.report, value)
    return value


def val_loss_of_checkpoint(train: Train, checkpoint: Path, device: str) -> float:
    """Return `val_loss` of a checkpoint of a run that is being trained in this process."""
    with collectives.alone():
        value, _ = _compute(
            "val_loss",
            load_trained(str(checkpoint), "ema", device, _precision(train)),
            train.report_n,
            train.batch_size,
        )
    configure_arithmetic(train.precision, train.deterministic, same_shapes=True)  # as the trainer needs it
    return value


def _precision(train: Train) -> str:
    return "fp32_strict" if train.precision == "fp32_strict" else "fp32"


def _compute(report: str, trained: Trained, n: int | None, batch_size: int) -> tuple[float, int]:
    """Return the value of the metric and the number of examples or samples that it is computed from."""
    dataset = trained.config.dataset
    match report:
        case "val_loss":
            test = _test_split(dataset, trained.classes, report, None)
            n = min(n or VAL_N, len(test))
            return val_loss(trained, test, n, batch_size), n
        case "nll":
            examples = _test_split(dataset, trained.classes, report, n or NLL_N)
            found = bound(trained, examples, batch_size, SEED, trained.config.compile)
            assert found is not None  # this process is alone
            return found.total, len(examples)
    n = n or DEFAULT_N[FEATURES[report]]
    generator = generator_of(trained, None, None, None)
    compile_for_inference(trained.network, trained.device, trained.config.compile, n, batch_size, generator.calls)
    samples = GeneratedSamples(generator, n, SEED, batch_size)
    evaluator = _evaluator(dataset, report, trained.device)
    return evaluator.compare(samples, SEED).metrics[report], n


def _test_split(dataset: Dataset, classes: list[str], report: str, n: int | None) -> Examples:
    """Return all or n examples of the test split, for train.report=`report`, with labels by the classes of a run.

    classes: of the run, none for an unconditional network. Raise `UserError` if the split cannot be used.
    """
    examples = load_examples(dataset, train=False, n=n)
    if not classes:
        return examples
    return numbered_by(classes, examples, f"train.report={report}: the test split", "the network knows")


def check_metrics(config: TrainConfig, classes: list[str]) -> None:
    """Raise `UserError` now if the data of a run lack what its metrics need later.

    The data are read as they will be then, so that images are decoded only once. classes: of the network.
    """
    train, own = config.train, config.evaluate
    with status("reading the data for the metrics of this run"):
        if train.report is not None and train.report not in FEATURES:
            _test_split(
                config.dataset, classes, train.report, train.report_n or NLL_N if train.report == "nll" else None
            )
        for key, metric, instead in (
            ("train.report", train.report, "val_loss"),
            ("evaluate.metric", own.metric if own.every is not None else None, "fid"),
        ):
            if metric in FEATURES:
                _check_comparable(config.dataset, f"{key}={metric}", FEATURES[metric], instead)


def _check_comparable(dataset: Dataset, key: str, features: str, instead: str) -> None:
    """Raise `UserError`, which names `key`, if samples cannot be compared with the test split of a dataset."""
    from ddpm_cli.evaluation.comparison import check_size, for_classifier

    splits = _splits(dataset)
    check_size(splits, key, ["fid"])
    if features == "classifier":
        for_classifier(splits, key, instead)


def _evaluator(dataset: Dataset, metric: str, device: torch.device) -> "SampleEvaluator":
    """Return what computes `metric`, one of `FEATURES`, of samples with the test split as the reference."""
    from ddpm_cli.evaluation.comparison import SampleEvaluator  # needs torch-fidelity, which is optional

    return SampleEvaluator(_splits(dataset), "test", ["fid"], FEATURES[metric], device)


def _splits(dataset: Dataset) -> dict[str, Examples]:
    return {name: load_examples(dataset, train=name == "train") for name in ("train", "test")}


@dataclass(frozen=True)
class Measurement:
    """A metric of the samples of a step, and half the width of its interval by `bootstrap_interval`."""

    step: int
    value: float
    error: float


class MilestoneEvaluator:
    """Measures the samples of a run at its milestones, as evaluate.* says.

    All ranks draw the samples with `generator`. Rank 0 compares them with the test split.
    """

    def __init__(self, config: TrainConfig, generator: SampleGenerator) -> None:
        self.config, self.generator = config, generator
        self._evaluator: SampleEvaluator | None = None

    def is_due(self, step: int, timeline: Timeline) -> bool:
        """Return whether the samples are measured at the milestone of a step."""
        every = self.config.evaluate.every
        return every is not None and (timeline.milestones_until(step) % every == 0 or step == timeline.steps)

    def measure(self, step: int, folder: Path) -> Measurement | None:
        """Measure the samples of this step, append the result to evaluations.jsonl and return it; None on ranks > 0."""
        own, started = self.config.evaluate, time.perf_counter()
        collectives.on_rank_zero(self._prepare)
        samples = GeneratedSamples(self.generator, own.n, SEED, self.config.train.batch_size)
        if self._evaluator is None:
            deque(samples, maxlen=0)
            return None
        found = self._evaluator.compare(samples, SEED)
        record = {
            **_subject(self.config, folder, step),
            "command": f"ddpm-train evaluate.every={own.every} evaluate.metric={own.metric} evaluate.n={own.n}",
            "n": own.n,
            "metrics": {own.metric: found.metrics[own.metric]},
            "intervals": found.intervals,
            "seconds": time.perf_counter() - started,
        }
        append(record, folder)
        low, high = found.intervals[own.metric]
        return Measurement(step, found.metrics[own.metric], (high - low) / 2)

    def _prepare(self) -> None:
        if self._evaluator is None:
            with status("reading the data to compare with"):
                self._evaluator = _evaluator(self.config.dataset, self.config.evaluate.metric, self.generator.device)


def without_improvement(measured: Sequence[Measurement]) -> int:
    """Return the number of last measurements that have not improved.

    A measurement improves if it is lower than the last one that did by more than the error of that one.
    """
    best, count = Measurement(0, math.inf, 0.0), 0
    for one in measured:
        improved = one.value < best.value - best.error
        best, count = (one, 0) if improved else (best, count + 1)
    return count


def _subject(config: TrainConfig, folder: Path, step: int) -> dict[str, Any]:
    """Return the keys of a record that say what was measured."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ckpt": str(RunFolder(folder).checkpoint(step).absolute()),
        "step": step,
        "weights": "ema",
        "dataset": config.dataset.name,
        "split": "test",
        "seed": SEED,
    }


@torch.no_grad()
def val_loss(trained: Trained, examples: Examples, n: int, batch_size: int) -> float:
    """Return the mean squared error of eps over n of `examples`, at timesteps spaced evenly over 0..T-1.

    Examples, timesteps and noise are the same for all runs, so small differences between runs are meaningful. Runs with
    different noise schedules cannot be compared, because the schedule determines the noise level of a timestep.
    Conditional networks receive the labels. Self-conditioned networks receive no previous estimate. If n exceeds the
    number of examples, all are used.
    """
    denoiser, device = trained.denoiser, trained.device
    process = denoiser.process
    chosen = torch.randperm(len(examples), generator=rng.generator("val_loss", "order"))[:n]
    n = len(chosen)
    timesteps = torch.arange(n) * process.timesteps // n
    values, labels = examples.values[chosen], None if examples.labels is None else examples.labels[chosen]
    with tqdm(total=n, desc="val_loss", unit="image", leave=False, disable=collectives.progress_bar_disabled()) as bar:

        def measure(numbers: range) -> Tensor:
            """Return the errors (B,) of the examples at the indices `numbers`."""
            part = slice(numbers.start, numbers.stop)
            x0, t = to_float(values[part].to(device)), timesteps[part].to(device)
            noise = [torch.randn(x0.shape[1:], generator=rng.generator("val_loss", i)) for i in numbers]
            eps = torch.stack(noise).to(device)
            y = labels[part].to(device) if trained.classes and labels is not None else None
            x_t = process.q_sample(x0, t, eps)
            found = denoiser.eps(denoiser(x_t, t, y), x_t, t)
            bar.update(len(numbers))
            return (found - eps).square().flatten(1).mean(1).cpu().double()

        errors = torch.cat([found for _, found in batches_with_oom_retry(n, batch_size, measure)])
    return errors.mean().item()
