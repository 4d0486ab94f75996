"""The metric that a run reports to a sweeper when it ends."""

import logging
import time
from datetime import datetime, timezone
from pathlib import Path

from ddpm_cli.checkpoints.loading import Trained, load_trained
from ddpm_cli.config import Train
from ddpm_cli.data.sources import load_examples
from ddpm_cli.evaluation.nll import NLL_N, bound, first_examples
from ddpm_cli.evaluation.record import append
from ddpm_cli.evaluation.samples import DEFAULT_N, GeneratedSamples
from ddpm_cli.evaluation.val_loss import val_loss
from ddpm_cli.sampling.sample_generator import generator_of

log = logging.getLogger(__name__)

VAL_N = 2048
SEED = 0


def final_metric(train: Train, folder: Path, device: str) -> float:
    """Compute the metric train.report for the run in `folder`, with the EMA weights in float32.

    The value is also appended to the evaluations of the run.
    """
    started = time.perf_counter()
    trained = load_trained(str(folder), "ema", device, "fp32")
    value, n = _compute(str(train.report), trained, train.report_n, train.batch_size)
    record = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"ddpm-train train.report={train.report}",
        "ckpt": str(trained.path.absolute()),
        "step": trained.step,
        "weights": "ema",
        "dataset": trained.config.dataset.name,
        "split": "test",
        "seed": SEED,
        "n": n,
        "metrics": {train.report: value},
        "seconds": time.perf_counter() - started,
    }
    append(record, folder)
    log.info("%s %.6g", train.report, value)
    return value


def _compute(report: str, trained: Trained, n: int | None, batch_size: int) -> tuple[float, int]:
    """Return the value and the number of images or samples that it is computed from."""
    dataset = trained.config.dataset
    test = load_examples(dataset, train=False)
    match report:
        case "val_loss":
            n = min(n or VAL_N, len(test))
            return val_loss(trained, test, n, batch_size), n
        case "nll":
            examples = first_examples(test, n or NLL_N)
            return bound(trained, examples, batch_size, SEED).total, len(examples)
    from ddpm_cli.evaluation.comparison import SampleEvaluator  # needs torch-fidelity, which is optional

    features = {"fd_classifier": "classifier", "fid": "inception"}[report]
    splits = {"train": load_examples(dataset, train=True), "test": test}
    evaluator = SampleEvaluator(splits, "test", ["fid"], features, trained.device)
    n = n or DEFAULT_N[features]
    found = evaluator.compare(GeneratedSamples(generator_of(trained, None, None, None), n, SEED, batch_size), SEED)
    return found.metrics[report], n
